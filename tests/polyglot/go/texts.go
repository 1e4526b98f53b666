package main

import (
	"fmt"

	hansard "example.com/conversation/gen/hansard/v1"
)

// Shown is what a stream has shown: events, and texts while they were being made.
type Shown struct {
	events []*hansard.Event
	texts  map[string]string
}

func newShown() *Shown {
	return &Shown{texts: map[string]string{}}
}

// add puts a delta in its place, an offset in bytes; what came after it before is dropped.
func (shown *Shown) add(delta *hansard.Delta) error {
	if delta == nil {
		return nil
	}
	known := shown.texts[delta.EventId]
	if delta.Offset > int64(len(known)) {
		return fmt.Errorf("a gap at %d", delta.Offset)
	}
	shown.texts[delta.EventId] = known[:delta.Offset] + delta.Text
	return nil
}

// facts returns the events, and whether the texts that were shown are theirs, byte for byte.
func (shown *Shown) facts() map[string]any {
	ids, sequences := []string{}, []int64{}
	known, verbatim := 0, true
	for _, event := range shown.events {
		ids = append(ids, event.Id)
		sequences = append(sequences, event.Sequence)
		if text, ok := shown.texts[event.Id]; ok {
			known++
			content := event.GetThinking().GetContent() + event.GetAgentOutput().GetContent()
			verbatim = verbatim && text == content
		}
	}
	return map[string]any{
		"events": ids, "sequences": sequences, "shown": known, "verbatim": verbatim,
	}
}
