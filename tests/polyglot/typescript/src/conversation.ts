// One conversation, as a client has it that knows nothing but the contract's image.
//
// Each step prints a line of JSON. After the lines "kill" and "drain" somebody else kills or stops
// the server and starts it again; the client goes on from what it has.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { setTimeout as sleep } from "node:timers/promises";
import { create, type JsonObject, type MessageInitShape } from "@bufbuild/protobuf";
import type { UploadArtifactsRequestSchema } from "../gen/hansard/v1/artifact_service_pb.js";
import { EventSchema, type Event } from "../gen/hansard/v1/event_pb.js";
import { SendEventRequestSchema } from "../gen/hansard/v1/event_service_pb.js";
import { TurnStatusSchema } from "../gen/hansard/v1/turn_pb.js";
import { connect, toFailure, type Failure } from "./client.js";
import type { Stream } from "./grpc.js";
import { Rules } from "./rules.js";
import { Shown } from "./texts.js";

export const SESSION = "conversation";
const CHUNK_BYTES = 256 * 1024;
const FILE = Buffer.from(Array.from({ length: 600_000 }, (_, index) => (index * 31) % 256));

export function say(step: string, facts: object = {}): void {
  process.stdout.write(`${JSON.stringify({ step, ...facts })}\n`);
}

export function checksum(...chunks: Uint8Array[]): string {
  const digest = createHash("sha256");
  for (const chunk of chunks) digest.update(chunk);
  return digest.digest("hex");
}

/** Returns how a call failed. */
export async function failing(call: Promise<unknown>): Promise<Failure> {
  const answer = await call.then(
    () => null,
    (error: unknown) => toFailure(error),
  );
  if (answer === null) throw new Error("the call succeeded");
  return answer;
}

/** Returns the first message of a stream, or throws what the call failed with. */
export async function firstOf<M>(call: Stream<M>): Promise<M> {
  for await (const item of call) {
    call.cancel();
    return item;
  }
  throw new Error("an empty stream");
}

/**
 * Returns the answer of a call that may meet a server that is going away, and is safe to repeat.
 * CANCELLED, by somebody else than this client, is how such a server cuts off what comes too late.
 */
async function untilServed<T>(call: () => Promise<T>): Promise<T> {
  for (;;) {
    try {
      return await call();
    } catch (error) {
      if (!["UNAVAILABLE", "CANCELLED"].includes(toFailure(error).code)) throw error;
    }
    await sleep(200);
  }
}

/** An agent, a session, and what was said in it. */
export class Conversation {
  readonly client = connect(process.env["HANSARD_API_KEY"] ?? "");
  readonly keys: { agentKey: string; sessionKey: string };

  constructor(
    readonly agentKey: string,
    private readonly scripts: JsonObject,
  ) {
    this.keys = { agentKey, sessionKey: SESSION };
  }

  private model(name: string) {
    return { name: "hansard/scripted", parameters: { script: this.scripts[name] ?? null } };
  }

  async create(): Promise<void> {
    const agents: string[] = [];
    const sessions: string[] = [];
    for (let time = 0; time < 2; time++) {
      const agent = await this.client.agents.createAgent({
        key: this.agentKey,
        name: "Polyglot",
        model: this.model("steady"),
        requestId: "agent",
      });
      const session = await this.client.sessions.createSession({
        agentKey: this.agentKey,
        key: SESSION,
        name: "Conversation",
        requestId: "session",
      });
      agents.push(agent.uid);
      sessions.push(session.uid);
    }
    say("created", { agent_uids: agents, session_uids: sessions });
  }

  upload(data: Buffer, requestId: string, checksumSha256: string): Promise<Event> {
    const parts: MessageInitShape<typeof UploadArtifactsRequestSchema>["part"][] = [
      { case: "start", value: { ...this.keys, requestId } },
      {
        case: "header",
        value: { filename: "table.bin", sizeBytes: BigInt(data.length), checksumSha256 },
      },
    ];
    for (let start = 0; start < data.length; start += CHUNK_BYTES) {
      parts.push({ case: "chunk", value: data.subarray(start, start + CHUNK_BYTES) });
    }
    return this.client.artifacts.uploadArtifacts(parts.map((part) => ({ part })));
  }

  async exchangeFile(): Promise<void> {
    const events: Event[] = [];
    for (let time = 0; time < 2; time++) {
      events.push(await this.upload(FILE, "upload", checksum(FILE)));
    }
    const payload = events[0]?.payload;
    const artifactId =
      payload?.case === "artifactUpload" ? payload.value.artifacts[0]?.artifactId : "";
    const received: Uint8Array[] = [];
    const call = this.client.artifacts.downloadArtifact({ ...this.keys, artifactId: artifactId ?? "" });
    for await (const { part } of call) {
      if (part.case === "chunk") received.push(part.value);
    }
    say("uploaded", { events: events.map((event) => event.id), sha256: checksum(...received) });
  }

  input(text: string, requestId: string) {
    const messages = [{ part: { case: "text", value: { content: text } } } as const];
    return create(SendEventRequestSchema, {
      ...this.keys,
      requestId,
      input: { case: "inputMessage", value: { messages } },
    });
  }

  /** Sends, and does something in the middle of a text; returns how the stream then ended. */
  private async cutOff(
    text: string,
    requestId: string,
    cut: (facts: object, cancel: () => void) => Promise<void>,
  ): Promise<{ sequence: bigint; code: string; facts: object }> {
    const call = this.client.events.sendEvent(this.input(text, requestId));
    const events: string[] = [];
    let deltas = 0;
    let sequence = 0n;
    let facts = {};
    try {
      for await (const item of call) {
        if (item.item.case === "event") events.push(item.item.value.id);
        if (item.item.case !== "delta" || ++deltas !== 3) continue;
        sequence = item.sequence;
        facts = { turn_id: item.turnId, sequence: Number(sequence), events: [...events] };
        await cut(facts, () => call.cancel());
      }
    } catch (error) {
      return { sequence, code: toFailure(error).code, facts };
    }
    throw new Error("the turn ended before it could be cut off");
  }

  /** Returns what a stream gave that ran to its end. */
  async sendWhole(text: string, requestId: string): Promise<object> {
    const shown = new Shown();
    let end = {};
    for await (const { item } of this.client.events.sendEvent(this.input(text, requestId))) {
      if (item.case === "delta") shown.add(item.value);
      if (item.case === "void") shown.texts.delete(item.value.eventId);
      if (item.case === "event") shown.events.push(item.value);
      if (item.case === "turnEnd" && item.value.turn) {
        const { id, status } = item.value.turn;
        end = { turn_id: id, status: TurnStatusSchema.value[status]?.name };
      }
    }
    return { ...end, ...shown.facts() };
  }

  /** Returns what a watch gives from a sequence on until the agent has answered. */
  private async watchUntilAnswer(afterSequence: bigint): Promise<object> {
    const shown = new Shown();
    const request = { ...this.keys, afterSequence, includeDeltas: true };
    const call = this.client.events.watchEvents(request);
    for await (const { item } of call) {
      if (item.case === "delta") shown.add(item.value);
      if (item.case !== "event") continue;
      shown.events.push(item.value);
      if (item.value.payload.case === "agentOutput") break;
    }
    call.cancel();
    return shown.facts();
  }

  async cutAndResume(): Promise<void> {
    const cut = await this.cutOff("Cut me off.", "cut", async (_, cancel) => cancel());
    say("cut", { ...cut.facts, code: cut.code });
    say("watched", await this.watchUntilAnswer(cut.sequence));
    say("replayed", await this.sendWhole("Cut me off.", "cut"));
  }

  async surviveKill(): Promise<void> {
    await this.setModel("slow");
    const killed = await this.cutOff("Die.", "kill", async (facts) => {
      // The turn's next owner reads the agent anew.
      await this.setModel("quick");
      say("kill", facts);
    });
    say("killed", { code: killed.code });
    say("joined", await untilServed(() => this.sendWhole("Die.", "kill")));
    say("watched again", await this.watchUntilAnswer(killed.sequence));
  }

  async surviveDrain(): Promise<void> {
    const watch = async () => {
      for await (const { item } of this.client.events.watchEvents(this.keys)) {
        if (item.case === "caughtUp") say("drain");
      }
    };
    const failure = await failing(watch());
    say("drained", failure);
    await sleep(failure.retry_s * 1000);
    const afterSequence = BigInt(failure.metadata["sequence"] ?? "");
    const first = await untilServed(() =>
      firstOf(this.client.events.watchEvents({ ...this.keys, afterSequence })),
    );
    const caughtUp = first.item.case === "caughtUp";
    say("back", { caught_up: caughtUp, sequence: Number(first.sequence) });
  }

  async setModel(name: string): Promise<void> {
    const { key, etag } = await this.client.agents.getAgent({ agentKey: this.agentKey });
    await this.client.agents.updateAgent({
      agent: { key, etag, model: this.model(name) },
      updateMask: { paths: ["model"] },
    });
  }

  async listBack(): Promise<void> {
    const events: Event[] = [];
    let pageToken = "";
    let pages = 0;
    do {
      const page = await this.client.events.listEvents({ ...this.keys, pageSize: 3, pageToken });
      events.push(...page.events);
      pageToken = page.nextPageToken;
      pages++;
    } while (pageToken);
    const { turns } = await this.client.turns.listTurns(this.keys);
    // A oneof's case is the field's name in TypeScript; the descriptor has the contract's.
    const names = new Map(EventSchema.fields.map((field) => [field.localName, field.name]));
    const inputs = events.flatMap(({ payload }) =>
      payload.case === "toolInput" ? [payload.value.toolInputJson] : [],
    );
    say("listed", {
      pages,
      events: events.map((event) => event.id),
      sequences: events.map((event) => Number(event.sequence)),
      types: events.map((event) => names.get(event.payload.case ?? "")),
      tool_inputs: inputs,
      turns: turns.map((turn) => turn.id),
    });
  }
}

async function main(): Promise<void> {
  const [agentKey = "", scripts = ""] = process.argv.slice(2);
  const talk = new Conversation(agentKey, JSON.parse(readFileSync(scripts, "utf8")) as JsonObject);
  const rules = new Rules(talk);
  await talk.create();
  await rules.check();
  await talk.exchangeFile();
  await talk.cutAndResume();
  await talk.surviveKill();
  await talk.surviveDrain();
  await rules.meetErrors();
  await talk.listBack();
  say("done");
  talk.client.close();
}

await main();
