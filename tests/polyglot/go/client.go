package main

import (
	"context"
	"os"
	"slices"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	hansard "example.com/conversation/gen/hansard/v1"
	"google.golang.org/genproto/googleapis/rpc/code"
)

// Client holds the services of one server.
type Client struct {
	access    hansard.AccessServiceClient
	agents    hansard.AgentServiceClient
	sessions  hansard.SessionServiceClient
	events    hansard.EventServiceClient
	turns     hansard.TurnServiceClient
	artifacts hansard.ArtifactServiceClient
}

// connect reaches the server of HANSARD_TARGET. Every call carries the API key and waits for a
// server that restarts.
func connect(apiKey string) (*Client, error) {
	authorize := func(ctx context.Context) context.Context {
		if apiKey == "" {
			return ctx
		}
		return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+apiKey)
	}
	connection, err := grpc.NewClient(os.Getenv("HANSARD_TARGET"),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
		grpc.WithUnaryInterceptor(func(ctx context.Context, method string, request, reply any,
			connection *grpc.ClientConn, call grpc.UnaryInvoker, options ...grpc.CallOption) error {
			return call(authorize(ctx), method, request, reply, connection, options...)
		}),
		grpc.WithStreamInterceptor(func(ctx context.Context, description *grpc.StreamDesc,
			connection *grpc.ClientConn, method string, open grpc.Streamer,
			options ...grpc.CallOption) (grpc.ClientStream, error) {
			return open(authorize(ctx), description, connection, method, options...)
		}))
	if err != nil {
		return nil, err
	}
	return &Client{
		access:    hansard.NewAccessServiceClient(connection),
		agents:    hansard.NewAgentServiceClient(connection),
		sessions:  hansard.NewSessionServiceClient(connection),
		events:    hansard.NewEventServiceClient(connection),
		turns:     hansard.NewTurnServiceClient(connection),
		artifacts: hansard.NewArtifactServiceClient(connection),
	}, nil
}

// Failure is what a status told.
type Failure struct {
	Code     string            `json:"code"`
	Reason   string            `json:"reason"`
	Domain   string            `json:"domain"`
	Metadata map[string]string `json:"metadata"`
	Fields   []string          `json:"fields"`
	Quota    []string          `json:"quota"`
	RetryS   float64           `json:"retry_s"`
}

// toFailure returns what the status of a failed call told.
func toFailure(err error) Failure {
	return fromStatus(status.Convert(err))
}

func fromStatus(status *status.Status) Failure {
	// Code.String() is for people; the name of the contract is google.rpc.Code's.
	failure := Failure{Code: code.Code(status.Code()).String()}
	for _, detail := range status.Details() {
		switch detail := detail.(type) {
		case *errdetails.ErrorInfo:
			failure.Reason, failure.Domain = detail.Reason, detail.Domain
			failure.Metadata = detail.Metadata
		case *errdetails.BadRequest:
			for _, violation := range detail.FieldViolations {
				failure.Fields = append(failure.Fields, violation.Field)
			}
			slices.Sort(failure.Fields)
		case *errdetails.QuotaFailure:
			for _, violation := range detail.Violations {
				failure.Quota = append(failure.Quota, violation.Subject)
			}
		case *errdetails.RetryInfo:
			failure.RetryS = detail.RetryDelay.AsDuration().Seconds()
		}
	}
	return failure
}
