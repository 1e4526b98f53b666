// One conversation, as a client has it that knows nothing but the contract's image.
//
// Each step prints a line of JSON. After the lines "kill" and "drain" somebody else kills or stops
// the server and starts it again; the client goes on from what it has.
package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"maps"
	"os"
	"strconv"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/types/known/fieldmaskpb"
	"google.golang.org/protobuf/types/known/structpb"

	hansard "example.com/conversation/gen/hansard/v1"
)

const (
	sessionKey = "conversation"
	chunkBytes = 256 * 1024
)

type facts = map[string]any

// Conversation is an agent, a session, and what was said in it.
type Conversation struct {
	*Client
	ctx      context.Context
	agentKey string
	scripts  map[string]json.RawMessage
}

func say(step string, known facts) {
	line := facts{"step": step}
	maps.Copy(line, known)
	must(0, json.NewEncoder(os.Stdout).Encode(line))
}

// must returns the value, or ends the program: what fails unasked fails the conversation.
func must[T any](value T, err error) T {
	if err != nil {
		log.Panic(err)
	}
	return value
}

func failing[T any](_ T, err error) Failure {
	if err == nil {
		log.Panic("the call succeeded")
	}
	return toFailure(err)
}

func file() []byte {
	data := make([]byte, 600_000)
	for index := range data {
		data[index] = byte(index * 31 % 256)
	}
	return data
}

func checksum(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

func (talk *Conversation) model(name string) *hansard.Model {
	parameters := &structpb.Struct{}
	must(0, protojson.Unmarshal(fmt.Appendf(nil, `{"script": %s}`, talk.scripts[name]), parameters))
	return &hansard.Model{Name: "hansard/scripted", Parameters: parameters}
}

func (talk *Conversation) create() {
	agents, sessions := []string{}, []string{}
	for range 2 {
		agent := must(talk.agents.CreateAgent(talk.ctx, &hansard.CreateAgentRequest{
			Key: talk.agentKey, Name: "Polyglot", Model: talk.model("steady"), RequestId: "agent",
		}))
		session := must(talk.sessions.CreateSession(talk.ctx, &hansard.CreateSessionRequest{
			AgentKey: talk.agentKey, Key: sessionKey, Name: "Conversation", RequestId: "session",
		}))
		agents, sessions = append(agents, agent.Uid), append(sessions, session.Uid)
	}
	say("created", facts{"agent_uids": agents, "session_uids": sessions})
}

func (talk *Conversation) upload(data []byte, requestID, sum string) (*hansard.Event, error) {
	call := must(talk.artifacts.UploadArtifacts(talk.ctx))
	size := int64(len(data))
	parts := []*hansard.UploadArtifactsRequest{
		{Part: &hansard.UploadArtifactsRequest_Start{Start: &hansard.UploadStart{
			AgentKey: talk.agentKey, SessionKey: sessionKey, RequestId: requestID,
		}}},
		{Part: &hansard.UploadArtifactsRequest_Header{Header: &hansard.UploadHeader{
			Filename: "table.bin", SizeBytes: &size, ChecksumSha256: sum,
		}}},
	}
	for start := 0; start < len(data); start += chunkBytes {
		chunk := data[start:min(start+chunkBytes, len(data))]
		parts = append(parts, &hansard.UploadArtifactsRequest{
			Part: &hansard.UploadArtifactsRequest_Chunk{Chunk: chunk},
		})
	}
	for _, part := range parts {
		// io.EOF: the call has failed; CloseAndRecv says how.
		if err := call.Send(part); err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
	}
	return call.CloseAndRecv()
}

func (talk *Conversation) exchangeFile() {
	data := file()
	first := must(talk.upload(data, "upload", checksum(data)))
	again := must(talk.upload(data, "upload", checksum(data)))
	call := must(talk.artifacts.DownloadArtifact(talk.ctx, &hansard.DownloadArtifactRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey,
		ArtifactId: first.GetArtifactUpload().Artifacts[0].ArtifactId,
	}))
	received := []byte{}
	for part, err := call.Recv(); !errors.Is(err, io.EOF); part, err = call.Recv() {
		received = append(received, must(part, err).GetChunk()...)
	}
	say("uploaded", facts{"events": []string{first.Id, again.Id}, "sha256": checksum(received)})
}

func (talk *Conversation) input(text, requestID string) *hansard.SendEventRequest {
	part := &hansard.MessagePart{
		Part: &hansard.MessagePart_Text{Text: &hansard.TextPart{Content: text}},
	}
	return &hansard.SendEventRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey, RequestId: requestID,
		Input: &hansard.SendEventRequest_InputMessage{
			InputMessage: &hansard.InputMessage{Messages: []*hansard.MessagePart{part}},
		},
	}
}

// sendUntilCut returns the call in the middle of a text, and what it has said so far.
func (talk *Conversation) sendUntilCut(ctx context.Context, text, requestID string) (
	hansard.EventService_SendEventClient, int64, facts,
) {
	call := must(talk.events.SendEvent(ctx, talk.input(text, requestID)))
	events := []string{}
	for deltas := 0; ; {
		item := must(call.Recv())
		if event := item.GetEvent(); event != nil {
			events = append(events, event.Id)
		}
		if item.GetDelta() != nil {
			deltas++
		}
		if deltas == 3 {
			return call, item.Sequence, facts{
				"turn_id": item.TurnId, "sequence": item.Sequence, "events": events,
			}
		}
	}
}

// sendWhole returns what a stream gave that ran to its end.
func (talk *Conversation) sendWhole(text, requestID string) (facts, error) {
	call := must(talk.events.SendEvent(talk.ctx, talk.input(text, requestID)))
	shown, turn := newShown(), &hansard.Turn{}
	for {
		item, err := call.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		must(0, shown.add(item.GetDelta()))
		if void := item.GetVoid(); void != nil {
			delete(shown.texts, void.EventId)
		}
		if event := item.GetEvent(); event != nil {
			shown.events = append(shown.events, event)
		}
		if end := item.GetTurnEnd(); end != nil {
			turn = end.Turn
		}
	}
	known := shown.facts()
	known["turn_id"], known["status"] = turn.Id, turn.Status.String()
	return known, nil
}

// watchUntilAnswer returns what a watch gives from a sequence on until the agent has answered.
func (talk *Conversation) watchUntilAnswer(after int64) facts {
	ctx, cancel := context.WithCancel(talk.ctx)
	defer cancel()
	call := must(talk.events.WatchEvents(ctx, &hansard.WatchEventsRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey, AfterSequence: after, IncludeDeltas: true,
	}))
	for shown := newShown(); ; {
		item := must(call.Recv())
		must(0, shown.add(item.GetDelta()))
		if event := item.GetEvent(); event != nil {
			shown.events = append(shown.events, event)
			if event.GetAgentOutput() != nil {
				return shown.facts()
			}
		}
	}
}

func end(call hansard.EventService_SendEventClient) Failure {
	for {
		if _, err := call.Recv(); err != nil {
			return toFailure(err)
		}
	}
}

func (talk *Conversation) cutAndResume() {
	ctx, cancel := context.WithCancel(talk.ctx)
	call, sequence, known := talk.sendUntilCut(ctx, "Cut me off.", "cut")
	cancel()
	known["code"] = end(call).Code
	say("cut", known)
	say("watched", talk.watchUntilAnswer(sequence))
	say("replayed", must(talk.sendWhole("Cut me off.", "cut")))
}

func (talk *Conversation) surviveKill() {
	talk.setModel("slow")
	call, sequence, known := talk.sendUntilCut(talk.ctx, "Die.", "kill")
	// The turn's next owner reads the agent anew.
	talk.setModel("quick")
	say("kill", known)
	say("killed", facts{"code": end(call).Code})
	say("joined", untilServed(func() (facts, error) { return talk.sendWhole("Die.", "kill") }))
	say("watched again", talk.watchUntilAnswer(sequence))
}

func (talk *Conversation) surviveDrain() {
	request := &hansard.WatchEventsRequest{AgentKey: talk.agentKey, SessionKey: sessionKey}
	call := must(talk.events.WatchEvents(talk.ctx, request))
	var failure Failure
	for failure.Code == "" {
		item, err := call.Recv()
		if err != nil {
			failure = toFailure(err)
		}
		if item.GetCaughtUp() != nil {
			say("drain", nil)
		}
	}
	say("drained", must(fields(failure)))
	request.AfterSequence = must(strconv.ParseInt(failure.Metadata["sequence"], 10, 64))
	time.Sleep(time.Duration(failure.RetryS * float64(time.Second)))
	first := untilServed(func() (*hansard.WatchEventsResponse, error) {
		ctx, cancel := context.WithCancel(talk.ctx)
		defer cancel()
		return must(talk.events.WatchEvents(ctx, request)).Recv()
	})
	say("back", facts{"caught_up": first.GetCaughtUp() != nil, "sequence": first.Sequence})
}

// untilServed returns the answer of a call that may meet a server that is going away, and is safe to
// repeat. Canceled, by somebody else than this client, is how such a server cuts off what comes too
// late.
func untilServed[T any](call func() (T, error)) T {
	for {
		answer, err := call()
		if code := status.Code(err); code != codes.Unavailable && code != codes.Canceled {
			return must(answer, err)
		}
		time.Sleep(200 * time.Millisecond)
	}
}

func (talk *Conversation) setModel(name string) {
	agent := must(talk.agents.GetAgent(talk.ctx, &hansard.GetAgentRequest{AgentKey: talk.agentKey}))
	must(talk.agents.UpdateAgent(talk.ctx, &hansard.UpdateAgentRequest{
		Agent:      &hansard.Agent{Key: agent.Key, Etag: agent.Etag, Model: talk.model(name)},
		UpdateMask: &fieldmaskpb.FieldMask{Paths: []string{"model"}},
	}))
}

func (talk *Conversation) listBack() {
	request := &hansard.ListEventsRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey, PageSize: 3,
	}
	ids, types, sequences, inputs, turns := []string{}, []string{}, []int64{}, []string{}, []string{}
	pages := 0
	for more := true; more; more = request.PageToken != "" {
		page := must(talk.events.ListEvents(talk.ctx, request))
		for _, event := range page.Events {
			ids, sequences = append(ids, event.Id), append(sequences, event.Sequence)
			types = append(types, payloadName(event))
			if call := event.GetToolInput(); call != nil {
				inputs = append(inputs, call.ToolInputJson)
			}
		}
		pages++
		request.PageToken = page.NextPageToken
	}
	list := must(talk.turns.ListTurns(talk.ctx, &hansard.ListTurnsRequest{
		AgentKey: talk.agentKey, SessionKey: sessionKey,
	}))
	for _, turn := range list.Turns {
		turns = append(turns, turn.Id)
	}
	say("listed", facts{
		"pages": pages, "events": ids, "sequences": sequences, "types": types,
		"tool_inputs": inputs, "turns": turns,
	})
}

// payloadName returns the type of an event: the name of the payload's field.
func payloadName(event *hansard.Event) string {
	message := event.ProtoReflect()
	payload := message.Descriptor().Oneofs().ByName("payload")
	return string(message.WhichOneof(payload).Name())
}

func fields(value any) (known facts, err error) {
	text, err := json.Marshal(value)
	if err == nil {
		err = json.Unmarshal(text, &known)
	}
	return known, err
}

func main() {
	scripts := map[string]json.RawMessage{}
	must(0, json.Unmarshal(must(os.ReadFile(os.Args[2])), &scripts))
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Minute)
	defer cancel()
	talk := &Conversation{
		must(connect(os.Getenv("HANSARD_API_KEY"))), ctx, os.Args[1], scripts,
	}
	talk.create()
	talk.checkRules()
	talk.exchangeFile()
	talk.cutAndResume()
	talk.surviveKill()
	talk.surviveDrain()
	talk.meetErrors()
	talk.listBack()
	say("done", nil)
}
