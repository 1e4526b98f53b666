// What a stream has shown: events, and texts while they were being made.

import type { Event } from "../gen/hansard/v1/event_pb.js";
import type { Delta } from "../gen/hansard/v1/event_service_pb.js";

export class Shown {
  readonly events: Event[] = [];
  readonly texts = new Map<string, Buffer>();

  /** Puts a delta in its place, an offset in UTF-8 bytes; what came after it before is dropped. */
  add(delta: Delta): void {
    const known = this.texts.get(delta.eventId) ?? Buffer.alloc(0);
    const offset = Number(delta.offset);
    if (offset > known.length) throw new Error(`a gap at ${offset}`);
    const text = Buffer.concat([known.subarray(0, offset), Buffer.from(delta.text)]);
    this.texts.set(delta.eventId, text);
  }

  /** Returns the events, and whether the texts that were shown are theirs, byte for byte. */
  facts() {
    const shown = this.events.filter((event) => this.texts.has(event.id));
    return {
      events: this.events.map((event) => event.id),
      sequences: this.events.map((event) => Number(event.sequence)),
      shown: shown.length,
      verbatim: shown.every((event) => this.texts.get(event.id)?.equals(content(event))),
    };
  }
}

function content({ payload }: Event): Buffer {
  const told = payload.case === "thinking" || payload.case === "agentOutput";
  return Buffer.from(told ? payload.value.content : "");
}
