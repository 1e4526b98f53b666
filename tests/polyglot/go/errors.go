package main

import (
	"errors"
	"log"
	"maps"
	"slices"
	"strings"

	"buf.build/go/protovalidate"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	hansard "example.com/conversation/gen/hansard/v1"
)

// localViolations returns the path and rule of each violation that the contract's rules find here.
func localViolations(request proto.Message) [][]string {
	var invalid *protovalidate.ValidationError
	found := [][]string{}
	if err := protovalidate.Validate(request); errors.As(err, &invalid) {
		for _, violation := range invalid.Violations {
			path := protovalidate.FieldPathString(violation.Proto.GetField())
			found = append(found, []string{path, violation.Proto.GetRuleId()})
		}
	} else {
		must(0, err)
	}
	slices.SortFunc(found, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	return found
}

// checkRules compares what the contract's rules say here with what the server says.
func (talk *Conversation) checkRules() {
	badSession := &hansard.CreateSessionRequest{AgentKey: "no spaces"}
	noInput := &hansard.SendEventRequest{AgentKey: talk.agentKey, SessionKey: sessionKey}
	badFile := &hansard.UploadArtifactsRequest{Part: &hansard.UploadArtifactsRequest_Header{
		Header: &hansard.UploadHeader{Filename: "../table.bin"},
	}}
	badUpdate := &hansard.UpdateSessionRequest{
		Session:    &hansard.Session{AgentKey: talk.agentKey, Key: sessionKey},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"name"}},
	}
	draft := func(customType string) *hansard.EventDraft {
		custom := &hansard.Custom{CustomType: customType, DataJson: "5"}
		return &hansard.EventDraft{Payload: &hansard.EventDraft_Custom{Custom: custom}}
	}
	badAppend := &hansard.AppendEventsRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey,
		Events: []*hansard.EventDraft{draft("com.example.rating"), draft("rating")},
	}
	rule := func(name string, request proto.Message, failure Failure) {
		server := must(fields(failure))
		say("rule", facts{"name": name, "local": localViolations(request), "server": server})
	}
	rule("patterns", badSession, failing(talk.sessions.CreateSession(talk.ctx, badSession)))
	rule("oneof", noInput, failing(first(talk.events.SendEvent(talk.ctx, noInput))))
	upload := must(talk.artifacts.UploadArtifacts(talk.ctx))
	must(0, upload.Send(badFile))
	rule("cel of a field", badFile, failing(upload.CloseAndRecv()))
	rule("cel of a message", badUpdate, failing(talk.sessions.UpdateSession(talk.ctx, badUpdate)))
	rule("nested", badAppend, failing(talk.events.AppendEvents(talk.ctx, badAppend)))
	if len(localViolations(talk.input("Hello?", "hello"))) > 0 {
		log.Panic("a good request breaks rules")
	}
}

// first returns the first message of a stream, or how the call failed.
func first[T any](call grpc.ServerStreamingClient[T], err error) (*T, error) {
	return must(call, err).Recv()
}

// meetErrors meets an error of each kind.
func (talk *Conversation) meetErrors() {
	met := func(name string, failure Failure) {
		known := facts{"name": name}
		maps.Copy(known, must(fields(failure)))
		say("error", known)
	}
	absent := &hansard.GetSessionRequest{AgentKey: talk.agentKey, SessionKey: "absent"}
	met("absent", failing(talk.sessions.GetSession(talk.ctx, absent)))
	again := &hansard.CreateSessionRequest{
		AgentKey: talk.agentKey, Key: sessionKey, Name: "Another",
	}
	met("exists", failing(talk.sessions.CreateSession(talk.ctx, again)))
	wrong := talk.input("Hello?", "sequence")
	wrong.ExpectedLastSequence = proto.Int64(1)
	met("sequence", failing(first(talk.events.SendEvent(talk.ctx, wrong))))
	reused := talk.input("Other.", "cut")
	met("reused", failing(first(talk.events.SendEvent(talk.ctx, reused))))
	parameters := must(structpb.NewStruct(facts{"script": "none"}))
	met("configuration", failing(talk.agents.UpdateAgent(talk.ctx, &hansard.UpdateAgentRequest{
		Agent: &hansard.Agent{
			Key:   talk.agentKey,
			Model: &hansard.Model{Name: "hansard/scripted", Parameters: parameters},
		},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"model"}},
	})))
	ahead := &hansard.WatchEventsRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey, AfterSequence: 1_000_000,
	}
	met("range", failing(first(talk.events.WatchEvents(talk.ctx, ahead))))
	more := []byte("more")
	met("quota", failing(talk.upload(more, "more", checksum(more))))
	met("checksum", failing(talk.upload(more, "less", strings.Repeat("0", 64))))
	get := &hansard.GetSessionRequest{AgentKey: talk.agentKey, SessionKey: sessionKey}
	met("nobody", failing(must(connect("")).sessions.GetSession(talk.ctx, get)))
	role := &hansard.RoleGrant{Role: hansard.Role_ROLE_AGENT_VIEWER, AgentKey: talk.agentKey}
	key := must(talk.access.CreateApiKey(talk.ctx, &hansard.CreateApiKeyRequest{
		Name: "Reader", Roles: []*hansard.RoleGrant{role},
	}))
	input := talk.input("Hi.", "reader")
	met("reader", failing(first(must(connect(key.Secret)).events.SendEvent(talk.ctx, input))))
	talk.setModel("failing")
	call := must(talk.events.SendEvent(talk.ctx, talk.input("Fail.", "fail")))
	for {
		if end := must(call.Recv()).GetTurnEnd(); end != nil {
			met("turn", fromStatus(status.FromProto(end.Turn.Error)))
			return
		}
	}
}
