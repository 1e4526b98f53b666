// An agent that runs elsewhere: Hansard calls it for every turn of its agents.
//
//     node dist/src/agent.js 127.0.0.1:50070
//
// It thinks, writes two notes side by side, has a report signed and the user asked, and answers.
// Asked "what did you say", it quotes its last answer. All that it knows stands in the history, so
// it can be killed at any moment: the next call goes on from what is on record.
//
// Environment: AGENT_TOKEN, which callers must bring; AGENT_PAUSE_MS, how long each step takes.

import { setTimeout as sleep } from "node:timers/promises";
import * as grpc from "@grpc/grpc-js";
import {
  create,
  fromBinary,
  toBinary,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";
import {
  AgentRuntimeService,
  RunTurnRequestSchema,
  RunTurnResponseSchema,
  TextKind,
} from "../gen/hansard/runtime/v1/agent_runtime_service_pb.js";
import { ToolOutcome, type Event, type ToolOutput } from "../gen/hansard/v1/event_pb.js";

const PAUSE_MS = Number(process.env["AGENT_PAUSE_MS"] ?? 0);
const TOKEN = process.env["AGENT_TOKEN"] ?? "";

type Request = MessageShape<typeof RunTurnRequestSchema>;
type Said = NonNullable<MessageInitShape<typeof RunTurnResponseSchema>["message"]>;
type Call = grpc.ServerDuplexStream<Request, Said>;

/** Somebody has to be asked. This call is over; another one comes when there is an answer. */
class Suspended extends Error {}

/** One call of RunTurn. */
class Turn {
  private readonly call: Call;
  private readonly requests: AsyncIterator<Request>;
  private readonly history: Event[] = [];

  constructor(call: Call) {
    this.call = call;
    this.requests = (call as AsyncIterable<Request>)[Symbol.asyncIterator]();
  }

  /** Reads what Hansard tells, and returns how often it wants to hear from this side, in ms. */
  async listen(): Promise<number> {
    let interval = 10_000;
    for (;;) {
      const { message } = await this.next();
      if (message.case === "start") {
        const { seconds, nanos } = message.value.heartbeatInterval ?? { seconds: 10n, nanos: 0 };
        interval = Number(seconds) * 1000 + nanos / 1e6;
      } else if (message.case === "history") {
        this.history.push(...message.value.events);
      } else if (message.case === "begin") {
        return interval;
      }
    }
  }

  /** Does what is still to be done, and answers. */
  async answer(): Promise<void> {
    const { question, done } = this.turn();
    if (question.toLowerCase().includes("what did you say")) {
      const before = this.history.flatMap(({ payload }) =>
        payload.case === "agentOutput" ? [payload.value.content] : [],
      );
      await this.write("agentOutput", `I said: ${before.at(-1) ?? "nothing"}`);
      this.say({ case: "end", value: {} });
      return;
    }
    if (!done.some(({ payload }) => payload.case === "thinking")) {
      await this.write("thinking", "First two notes, then a signature and a question.");
    }
    let outputs = inOrderOfCalls(done);
    if (outputs.length < 2) {
      outputs = await this.run([
        { name: "write", arguments: { filename: "one.txt", content: question } },
        { name: "write", arguments: { filename: "two.txt", content: question } },
      ]);
    }
    if (outputs.length < 4) {
      outputs = outputs.concat(
        await this.run([
          { name: "sign", arguments: { filename: "report.txt", content: "All is well." } },
          { name: "confirm", arguments: { question: "Shall I go on?" } },
        ]),
      );
    }
    await this.write("agentOutput", report(outputs));
    const usage = { inputTokens: BigInt(this.history.length), outputTokens: 1n };
    this.say({ case: "usage", value: usage });
    this.say({ case: "end", value: {} });
  }

  /** Sends a message. */
  say(message: Said): void {
    this.call.write(message);
  }

  /** Returns the question, and what this turn has done already. */
  private turn(): { question: string; done: Event[] } {
    const place = this.history.findLastIndex(({ payload }) => payload.case === "inputMessage");
    const payload = this.history[place]?.payload;
    const parts = payload?.case === "inputMessage" ? payload.value.messages : [];
    const texts = parts.map(({ part }) => (part.case === "text" ? part.value.content : ""));
    return { question: texts.join(" "), done: this.history.slice(place + 1) };
  }

  /** Writes a text, word by word. */
  private async write(kind: "thinking" | "agentOutput", content: string): Promise<void> {
    const kinds = { thinking: TextKind.THINKING, agentOutput: TextKind.AGENT_OUTPUT };
    const words = content.split(" ");
    for (const [number, word] of words.entries()) {
      await sleep(PAUSE_MS / words.length);
      const text = number ? ` ${word}` : word;
      this.say({ case: "delta", value: { kind: kinds[kind], text } });
    }
    const value =
      kind === "thinking"
        ? { payload: { case: kind, value: { content } } }
        : { payload: { case: kind, value: { content } } };
    this.say({ case: "event", value });
  }

  /** Has Hansard run its tools, side by side, and returns what they answered. */
  private async run(calls: { name: string; arguments: object }[]): Promise<ToolOutput[]> {
    await sleep(PAUSE_MS);
    const asked = calls.map((call) => ({
      name: call.name,
      argumentsJson: JSON.stringify(call.arguments),
    }));
    this.say({ case: "toolCalls", value: { calls: asked } });
    for (;;) {
      const { message } = await this.next();
      if (message.case === "suspend") throw new Suspended();
      if (message.case === "toolResults") {
        await sleep(PAUSE_MS);
        return message.value.outputs;
      }
    }
  }

  private async next(): Promise<Request> {
    const { value, done } = await this.requests.next();
    if (done) throw new Suspended();
    return value as Request;
  }
}

/** Returns what the calls came to. Outputs stand in the history in the order of their arrival. */
function inOrderOfCalls(events: Event[]): ToolOutput[] {
  const found = new Map<string, ToolOutput>();
  for (const { payload } of events) {
    if (payload.case === "toolOutput") found.set(payload.value.toolCallId, payload.value);
  }
  return events.flatMap(({ payload }) => {
    const output = payload.case === "toolInput" ? found.get(payload.value.toolCallId) : undefined;
    return output ? [output] : [];
  });
}

/** Returns the answer. */
function report([one, two, signed, confirmed]: ToolOutput[]): string {
  const notes = [one, two].map((note) => parse(note)["filename"] ?? "?");
  const outcome = ToolOutcome[signed?.outcome ?? 0]?.toLowerCase();
  const said = JSON.stringify(parse(confirmed));
  return `Notes: ${notes.join(", ")}. The report is ${outcome}. You said: ${said}.`;
}

function parse(output: ToolOutput | undefined): Record<string, unknown> {
  return JSON.parse(output?.toolOutputJson ?? "{}") as Record<string, unknown>;
}

async function runTurn(call: Call): Promise<void> {
  const [key] = call.metadata.get("authorization");
  if (TOKEN && key !== `Bearer ${TOKEN}`) {
    call.emit("error", { code: grpc.status.UNAUTHENTICATED, details: "who are you?" });
    return;
  }
  const turn = new Turn(call);
  let beating: NodeJS.Timeout | undefined;
  try {
    const interval = await turn.listen();
    beating = setInterval(() => turn.say({ case: "heartbeat", value: {} }), interval / 2);
    await turn.answer();
  } catch (error) {
    // A call that was cancelled is over.
    if (!(error instanceof Suspended) && !call.cancelled) throw error;
  } finally {
    clearInterval(beating);
    call.end();
  }
}

const { runTurn: method } = AgentRuntimeService.method;
const server = new grpc.Server();
server.addService(
  {
    RunTurn: {
      path: `/${AgentRuntimeService.typeName}/${method.name}`,
      requestStream: true,
      responseStream: true,
      requestDeserialize: (bytes: Buffer) => fromBinary(RunTurnRequestSchema, bytes),
      requestSerialize: (request: Request) => Buffer.from(toBinary(RunTurnRequestSchema, request)),
      responseSerialize: (message: Said) =>
        Buffer.from(toBinary(RunTurnResponseSchema, create(RunTurnResponseSchema, { message }))),
      responseDeserialize: (bytes: Buffer) => fromBinary(RunTurnResponseSchema, bytes),
    },
  },
  { RunTurn: (call: Call) => void runTurn(call) },
);
const address = process.argv[2] ?? "127.0.0.1:50070";
server.bindAsync(address, grpc.ServerCredentials.createInsecure(), (error, port) => {
  if (error) throw error;
  console.log(`serving on port ${port}`);
});
