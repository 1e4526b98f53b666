// The contract's rules, checked here and by the server; and an error of each kind.

import { create, type DescMessage, type MessageInitShape } from "@bufbuild/protobuf";
import { pathToString } from "@bufbuild/protobuf/reflect";
import { createValidator } from "@bufbuild/protovalidate";
import { Role } from "../gen/hansard/v1/access_pb.js";
import { UploadArtifactsRequestSchema } from "../gen/hansard/v1/artifact_service_pb.js";
import {
  AppendEventsRequestSchema,
  SendEventRequestSchema,
} from "../gen/hansard/v1/event_service_pb.js";
import {
  CreateSessionRequestSchema,
  UpdateSessionRequestSchema,
} from "../gen/hansard/v1/session_service_pb.js";
import { connect, fromStatus, type Failure } from "./client.js";
import { checksum, failing, firstOf, say, SESSION, type Conversation } from "./conversation.js";

const validator = createValidator();

/** Returns the path and rule of each violation that the contract's rules find here. */
function violations<D extends DescMessage>(schema: D, request: MessageInitShape<D>): string[][] {
  const result = validator.validate(schema, create(schema, request));
  if (result.kind === "error") throw result.error;
  return (result.violations ?? [])
    .map((violation) => [pathToString(violation.field), violation.ruleId])
    .sort();
}

async function check<D extends DescMessage>(
  name: string,
  schema: D,
  request: MessageInitShape<D>,
  call: (request: MessageInitShape<D>) => Promise<unknown>,
): Promise<void> {
  const local = violations(schema, request);
  say("rule", { name, local, server: await failing(call(request)) });
}

export class Rules {
  constructor(private readonly talk: Conversation) {}

  /** Compares what the contract's rules say here with what the server says. */
  async check(): Promise<void> {
    const { client, keys, agentKey } = this.talk;
    await check("patterns", CreateSessionRequestSchema, { agentKey: "no spaces" }, (request) =>
      client.sessions.createSession(request),
    );
    await check("oneof", SendEventRequestSchema, keys, (request) =>
      firstOf(client.events.sendEvent(request)),
    );
    await check(
      "cel of a field",
      UploadArtifactsRequestSchema,
      { part: { case: "header", value: { filename: "../table.bin" } } },
      (request) => client.artifacts.uploadArtifacts([request]),
    );
    await check(
      "cel of a message",
      UpdateSessionRequestSchema,
      { session: { agentKey, key: SESSION }, updateMask: { paths: ["name"] } },
      (request) => client.sessions.updateSession(request),
    );
    const draft = (customType: string) => {
      return { payload: { case: "custom", value: { customType, dataJson: "5" } } } as const;
    };
    await check(
      "nested",
      AppendEventsRequestSchema,
      { ...keys, events: [draft("com.example.rating"), draft("rating")] },
      (request) => client.events.appendEvents(request),
    );
    const found = violations(SendEventRequestSchema, this.talk.input("Hello?", "hello"));
    if (found.length) throw new Error("a good request breaks rules");
  }

  /** Meets an error of each kind. */
  async meetErrors(): Promise<void> {
    const { client, keys, agentKey } = this.talk;
    const met = (name: string, failure: Failure) => say("error", { name, ...failure });
    const absent = client.sessions.getSession({ agentKey, sessionKey: "absent" });
    met("absent", await failing(absent));
    const again = client.sessions.createSession({ agentKey, key: SESSION, name: "Another" });
    met("exists", await failing(again));
    const wrong = { ...this.talk.input("Hello?", "sequence"), expectedLastSequence: 1n };
    met("sequence", await failing(firstOf(client.events.sendEvent(wrong))));
    const other = client.events.sendEvent(this.talk.input("Other.", "cut"));
    met("reused", await failing(firstOf(other)));
    const model = { name: "hansard/scripted", parameters: { script: "none" } };
    const update = { agent: { key: agentKey, model }, updateMask: { paths: ["model"] } };
    met("configuration", await failing(client.agents.updateAgent(update)));
    const ahead = client.events.watchEvents({ ...keys, afterSequence: 1_000_000n });
    met("range", await failing(firstOf(ahead)));
    const more = Buffer.from("more");
    met("quota", await failing(this.talk.upload(more, "more", checksum(more))));
    met("checksum", await failing(this.talk.upload(more, "less", "0".repeat(64))));
    const roles = [{ role: Role.AGENT_VIEWER, agentKey }];
    const { secret } = await client.access.createApiKey({ name: "Reader", roles });
    const [anybody, reader] = [connect(""), connect(secret)];
    met("nobody", await failing(anybody.sessions.getSession(keys)));
    const hello = reader.events.sendEvent(this.talk.input("Hi.", "reader"));
    met("reader", await failing(firstOf(hello)));
    anybody.close();
    reader.close();
    await this.talk.setModel("failing");
    for await (const { item } of client.events.sendEvent(this.talk.input("Fail.", "fail"))) {
      const error = item.case === "turnEnd" ? item.value.turn?.error : undefined;
      if (error) met("turn", fromStatus(error.code, error));
    }
  }
}
