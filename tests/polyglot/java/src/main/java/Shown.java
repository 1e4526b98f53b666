import hansard.v1.Delta;
import hansard.v1.Event;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.Arrays;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;

/** What a stream has shown: events, and texts while they were being made. */
final class Shown {
  final List<Event> events = new ArrayList<>();
  final Map<String, byte[]> texts = new HashMap<>();

  /** Puts a delta in its place, an offset in UTF-8 bytes; what came after it before is dropped. */
  void add(Delta delta) {
    byte[] known = texts.getOrDefault(delta.getEventId(), new byte[0]);
    int offset = (int) delta.getOffset();
    if (offset > known.length) {
      throw new IllegalStateException("a gap at " + offset);
    }
    byte[] more = delta.getText().getBytes(StandardCharsets.UTF_8);
    byte[] text = Arrays.copyOf(known, offset + more.length);
    System.arraycopy(more, 0, text, offset, more.length);
    texts.put(delta.getEventId(), text);
  }

  /** Returns the events, and whether the texts that were shown are theirs, byte for byte. */
  Map<String, Object> facts() {
    List<Event> shown = events.stream().filter(event -> texts.containsKey(event.getId())).toList();
    Map<String, Object> facts = new LinkedHashMap<>();
    facts.put("events", events.stream().map(Event::getId).toList());
    facts.put("sequences", events.stream().map(Event::getSequence).toList());
    facts.put("shown", shown.size());
    facts.put("verbatim", shown.stream().allMatch(this::isVerbatim));
    return facts;
  }

  private boolean isVerbatim(Event event) {
    String content = event.getThinking().getContent() + event.getAgentOutput().getContent();
    return Arrays.equals(texts.get(event.getId()), content.getBytes(StandardCharsets.UTF_8));
  }
}
