// How this client reaches a server, and what it makes of a failed call.

import * as grpc from "@grpc/grpc-js";
import { fromBinary, type MessageShape } from "@bufbuild/protobuf";
import { anyUnpack } from "@bufbuild/protobuf/wkt";
import {
  BadRequestSchema,
  ErrorInfoSchema,
  QuotaFailureSchema,
  RetryInfoSchema,
} from "../gen/google/rpc/error_details_pb.js";
import { StatusSchema } from "../gen/google/rpc/status_pb.js";
import { AccessService } from "../gen/hansard/v1/access_service_pb.js";
import { AgentService } from "../gen/hansard/v1/agent_service_pb.js";
import { ArtifactService } from "../gen/hansard/v1/artifact_service_pb.js";
import { EventService } from "../gen/hansard/v1/event_service_pb.js";
import { SessionService } from "../gen/hansard/v1/session_service_pb.js";
import { TurnService } from "../gen/hansard/v1/turn_service_pb.js";
import { makeClient } from "./grpc.js";

/** Returns the services of HANSARD_TARGET. Calls wait for a server that restarts. */
export function connect(apiKey: string) {
  const target = process.env["HANSARD_TARGET"] ?? "";
  const connection = new grpc.Client(target, grpc.credentials.createInsecure());
  const metadata = () => {
    const made = new grpc.Metadata({ waitForReady: true });
    if (apiKey) made.set("authorization", `Bearer ${apiKey}`);
    return made;
  };
  return {
    access: makeClient(AccessService, connection, metadata),
    agents: makeClient(AgentService, connection, metadata),
    sessions: makeClient(SessionService, connection, metadata),
    events: makeClient(EventService, connection, metadata),
    turns: makeClient(TurnService, connection, metadata),
    artifacts: makeClient(ArtifactService, connection, metadata),
    close: () => connection.close(),
  };
}

/** What a status told. */
export interface Failure {
  code: string;
  reason: string;
  domain: string;
  metadata: Record<string, string>;
  fields: string[];
  quota: string[];
  retry_s: number;
}

/** Returns what the status of a failed call told; what is no failed call is thrown on. */
export function toFailure(error: unknown): Failure {
  if (!(error instanceof Error && "code" in error && "metadata" in error)) throw error;
  const failed = error as grpc.ServiceError;
  const [details] = failed.metadata.get("grpc-status-details-bin");
  const bytes = details instanceof Buffer ? details : new Uint8Array();
  return fromStatus(failed.code, fromBinary(StatusSchema, bytes));
}

/** Returns what a google.rpc.Status tells. */
export function fromStatus(code: number, status: MessageShape<typeof StatusSchema>): Failure {
  const failure: Failure = {
    code: grpc.status[code] ?? String(code),
    reason: "",
    domain: "",
    metadata: {},
    fields: [],
    quota: [],
    retry_s: 0,
  };
  for (const detail of status.details) {
    const info = anyUnpack(detail, ErrorInfoSchema);
    if (info) {
      const { reason, domain, metadata } = info;
      Object.assign(failure, { reason, domain, metadata });
    }
    const bad = anyUnpack(detail, BadRequestSchema);
    if (bad) failure.fields = bad.fieldViolations.map((violation) => violation.field).sort();
    const quota = anyUnpack(detail, QuotaFailureSchema);
    if (quota) failure.quota = quota.violations.map((violation) => violation.subject);
    const retry = anyUnpack(detail, RetryInfoSchema)?.retryDelay;
    if (retry) failure.retry_s = Number(retry.seconds) + retry.nanos / 1e9;
  }
  return failure;
}
