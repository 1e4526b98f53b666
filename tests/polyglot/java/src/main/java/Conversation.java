import com.google.gson.Gson;
import com.google.gson.JsonObject;
import com.google.gson.JsonParser;
import com.google.protobuf.ByteString;
import com.google.protobuf.Descriptors.OneofDescriptor;
import com.google.protobuf.FieldMask;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.protobuf.Struct;
import com.google.protobuf.util.JsonFormat;
import hansard.v1.Agent;
import hansard.v1.CreateAgentRequest;
import hansard.v1.CreateSessionRequest;
import hansard.v1.DownloadArtifactRequest;
import hansard.v1.Event;
import hansard.v1.GetAgentRequest;
import hansard.v1.InputMessage;
import hansard.v1.ListEventsRequest;
import hansard.v1.ListEventsResponse;
import hansard.v1.ListTurnsRequest;
import hansard.v1.MessagePart;
import hansard.v1.Model;
import hansard.v1.SendEventRequest;
import hansard.v1.SendEventResponse;
import hansard.v1.TextPart;
import hansard.v1.Turn;
import hansard.v1.UpdateAgentRequest;
import hansard.v1.UploadArtifactsRequest;
import hansard.v1.UploadHeader;
import hansard.v1.UploadStart;
import hansard.v1.WatchEventsRequest;
import hansard.v1.WatchEventsResponse;
import io.grpc.Context;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import io.grpc.stub.StreamObserver;
import java.io.ByteArrayOutputStream;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.MessageDigest;
import java.security.NoSuchAlgorithmException;
import java.util.ArrayList;
import java.util.HexFormat;
import java.util.Iterator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Set;
import java.util.concurrent.CompletableFuture;
import java.util.concurrent.CompletionException;
import java.util.function.Consumer;
import java.util.function.Supplier;

/**
 * One conversation, as a client has it that knows nothing but the contract's image.
 *
 * <p>Each step prints a line of JSON. After the lines "kill" and "drain" somebody else kills or
 * stops the server and starts it again; the client goes on from what it has.
 */
public final class Conversation {
  static final String SESSION = "conversation";
  private static final int CHUNK_BYTES = 256 * 1024;
  private static final Set<Status.Code> GOING_AWAY =
      Set.of(Status.Code.UNAVAILABLE, Status.Code.CANCELLED);
  private static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);

  final Client client;
  final String agentKey;
  private final JsonObject scripts;

  Conversation(Client client, String agentKey, JsonObject scripts) {
    this.client = client;
    this.agentKey = agentKey;
    this.scripts = scripts;
  }

  static void say(String step, Map<String, ?> facts) {
    Map<String, Object> line = new LinkedHashMap<>();
    line.put("step", step);
    line.putAll(facts);
    OUT.println(new Gson().toJson(line));
  }

  private static byte[] file() {
    byte[] data = new byte[600_000];
    for (int index = 0; index < data.length; index++) {
      data[index] = (byte) (index * 31 % 256);
    }
    return data;
  }

  static String checksum(byte[] data) {
    try {
      return HexFormat.of().formatHex(MessageDigest.getInstance("SHA-256").digest(data));
    } catch (NoSuchAlgorithmException error) {
      throw new IllegalStateException(error);
    }
  }

  private Model model(String name) {
    Struct.Builder parameters = Struct.newBuilder();
    JsonObject json = new JsonObject();
    json.add("script", scripts.get(name));
    try {
      JsonFormat.parser().merge(json.toString(), parameters);
    } catch (InvalidProtocolBufferException error) {
      throw new IllegalStateException(error);
    }
    return Model.newBuilder().setName("hansard/scripted").setParameters(parameters).build();
  }

  void create() {
    CreateAgentRequest agent =
        CreateAgentRequest.newBuilder()
            .setKey(agentKey)
            .setName("Polyglot")
            .setModel(model("steady"))
            .setRequestId("agent")
            .build();
    CreateSessionRequest session =
        CreateSessionRequest.newBuilder()
            .setAgentKey(agentKey)
            .setKey(SESSION)
            .setName("Conversation")
            .setRequestId("session")
            .build();
    List<String> agents = new ArrayList<>();
    List<String> sessions = new ArrayList<>();
    for (int time = 0; time < 2; time++) {
      agents.add(client.agents.createAgent(agent).getUid());
      sessions.add(client.sessions.createSession(session).getUid());
    }
    say("created", Map.of("agent_uids", agents, "session_uids", sessions));
  }

  Event upload(byte[] data, String requestId, String checksum) {
    UploadStart start =
        UploadStart.newBuilder()
            .setAgentKey(agentKey)
            .setSessionKey(SESSION)
            .setRequestId(requestId)
            .build();
    UploadHeader header =
        UploadHeader.newBuilder()
            .setFilename("table.bin")
            .setSizeBytes(data.length)
            .setChecksumSha256(checksum)
            .build();
    List<UploadArtifactsRequest> parts = new ArrayList<>();
    parts.add(UploadArtifactsRequest.newBuilder().setStart(start).build());
    parts.add(UploadArtifactsRequest.newBuilder().setHeader(header).build());
    for (int from = 0; from < data.length; from += CHUNK_BYTES) {
      int size = Math.min(CHUNK_BYTES, data.length - from);
      ByteString chunk = ByteString.copyFrom(data, from, size);
      parts.add(UploadArtifactsRequest.newBuilder().setChunk(chunk).build());
    }
    return upload(parts);
  }

  Event upload(List<UploadArtifactsRequest> parts) {
    CompletableFuture<Event> answer = new CompletableFuture<>();
    StreamObserver<UploadArtifactsRequest> call =
        client.uploads.uploadArtifacts(
            new StreamObserver<>() {
              @Override
              public void onNext(Event event) {
                answer.complete(event);
              }

              @Override
              public void onError(Throwable error) {
                answer.completeExceptionally(error);
              }

              @Override
              public void onCompleted() {}
            });
    parts.forEach(call::onNext);
    call.onCompleted();
    try {
      return answer.join();
    } catch (CompletionException error) {
      throw (StatusRuntimeException) error.getCause();
    }
  }

  void exchangeFile() {
    byte[] data = file();
    Event first = upload(data, "upload", checksum(data));
    Event again = upload(data, "upload", checksum(data));
    DownloadArtifactRequest request =
        DownloadArtifactRequest.newBuilder()
            .setAgentKey(agentKey)
            .setSessionKey(SESSION)
            .setArtifactId(first.getArtifactUpload().getArtifacts(0).getArtifactId())
            .build();
    ByteArrayOutputStream received = new ByteArrayOutputStream();
    client
        .artifacts
        .downloadArtifact(request)
        .forEachRemaining(part -> received.writeBytes(part.getChunk().toByteArray()));
    say(
        "uploaded",
        Map.of(
            "events",
            List.of(first.getId(), again.getId()),
            "sha256",
            checksum(received.toByteArray())));
  }

  SendEventRequest.Builder input(String text, String requestId) {
    MessagePart part =
        MessagePart.newBuilder().setText(TextPart.newBuilder().setContent(text)).build();
    return SendEventRequest.newBuilder()
        .setAgentKey(agentKey)
        .setSessionKey(SESSION)
        .setRequestId(requestId)
        .setInputMessage(InputMessage.newBuilder().addMessages(part));
  }

  WatchEventsRequest.Builder watch() {
    return WatchEventsRequest.newBuilder().setAgentKey(agentKey).setSessionKey(SESSION);
  }

  /** Sends, does something in the middle of a text, and puts among the facts how it ended. */
  private Map<String, Object> cutOff(
      String text, String requestId, Consumer<Map<String, Object>> cut) {
    Map<String, Object> facts = new LinkedHashMap<>();
    List<String> events = new ArrayList<>();
    int deltas = 0;
    try {
      Iterator<SendEventResponse> items =
          client.events.sendEvent(input(text, requestId).build());
      while (items.hasNext()) {
        SendEventResponse item = items.next();
        if (item.hasEvent()) {
          events.add(item.getEvent().getId());
        }
        if (!item.hasDelta() || ++deltas != 3) {
          continue;
        }
        facts.put("turn_id", item.getTurnId());
        facts.put("sequence", item.getSequence());
        facts.put("events", List.copyOf(events));
        cut.accept(facts);
      }
    } catch (StatusRuntimeException error) {
      facts.put("code", error.getStatus().getCode().name());
      return facts;
    }
    throw new IllegalStateException("the turn ended before it could be cut off");
  }

  /** Returns what a stream gave that ran to its end. */
  private Map<String, Object> sendWhole(String text, String requestId) {
    Shown shown = new Shown();
    Turn turn = Turn.getDefaultInstance();
    Iterator<SendEventResponse> items = client.events.sendEvent(input(text, requestId).build());
    while (items.hasNext()) {
      SendEventResponse item = items.next();
      switch (item.getItemCase()) {
        case DELTA -> shown.add(item.getDelta());
        case VOID -> shown.texts.remove(item.getVoid().getEventId());
        case EVENT -> shown.events.add(item.getEvent());
        case TURN_END -> turn = item.getTurnEnd().getTurn();
        default -> {}
      }
    }
    Map<String, Object> facts = shown.facts();
    facts.put("turn_id", turn.getId());
    facts.put("status", turn.getStatus().name());
    return facts;
  }

  /** Returns what a watch gives from a sequence on until the agent has answered. */
  private Map<String, Object> watchUntilAnswer(long afterSequence) {
    Shown shown = new Shown();
    WatchEventsRequest request =
        watch().setAfterSequence(afterSequence).setIncludeDeltas(true).build();
    // A blocking stream ends with the context that it was called in.
    try (Context.CancellableContext context = Context.current().withCancellation()) {
      context.run(
          () -> {
            Iterator<WatchEventsResponse> items = client.events.watchEvents(request);
            boolean answered = false;
            while (!answered) {
              WatchEventsResponse item = items.next();
              if (item.hasDelta()) {
                shown.add(item.getDelta());
              }
              if (item.hasEvent()) {
                shown.events.add(item.getEvent());
                answered = item.getEvent().hasAgentOutput();
              }
            }
          });
    }
    return shown.facts();
  }

  /** Returns the answer of a call, made in a context that ends with it. */
  static <T> T alone(Supplier<T> call) {
    Context.CancellableContext context = Context.current().withCancellation();
    Context before = context.attach();
    try {
      return call.get();
    } finally {
      context.detach(before);
      context.close();
    }
  }

  void cutAndResume() {
    Context.CancellableContext context = Context.current().withCancellation();
    Context before = context.attach();
    Map<String, Object> cut =
        cutOff("Cut me off.", "cut", facts -> context.cancel(null));
    context.detach(before);
    say("cut", cut);
    say("watched", watchUntilAnswer((long) cut.get("sequence")));
    say("replayed", sendWhole("Cut me off.", "cut"));
  }

  void surviveKill() throws InterruptedException {
    setModel("slow");
    Map<String, Object> killed =
        cutOff(
            "Die.",
            "kill",
            facts -> {
              // The turn's next owner reads the agent anew.
              setModel("quick");
              say("kill", facts);
            });
    say("killed", Map.of("code", killed.get("code")));
    say("joined", untilServed(() -> sendWhole("Die.", "kill")));
    say("watched again", watchUntilAnswer((long) killed.get("sequence")));
  }

  @SuppressWarnings("unchecked")
  void surviveDrain() throws InterruptedException {
    Map<String, Object> drained =
        Rules.failing(
            () ->
                client
                    .events
                    .watchEvents(watch().build())
                    .forEachRemaining(
                        item -> {
                          if (item.hasCaughtUp()) {
                            say("drain", Map.of());
                          }
                        }));
    say("drained", drained);
    long sequence = Long.parseLong(((Map<String, String>) drained.get("metadata")).get("sequence"));
    Thread.sleep((long) (1000 * (double) drained.get("retry_s")));
    WatchEventsRequest request = watch().setAfterSequence(sequence).build();
    WatchEventsResponse first =
        untilServed(() -> alone(() -> client.events.watchEvents(request).next()));
    say("back", Map.of("caught_up", first.hasCaughtUp(), "sequence", first.getSequence()));
  }

  /**
   * Returns the answer of a call that may meet a server that is going away, and is safe to repeat.
   * CANCELLED, by somebody else than this client, is how such a server cuts off what comes too late.
   */
  private static <T> T untilServed(Supplier<T> call) throws InterruptedException {
    while (true) {
      try {
        return call.get();
      } catch (StatusRuntimeException error) {
        if (!GOING_AWAY.contains(error.getStatus().getCode())) {
          throw error;
        }
      }
      Thread.sleep(200);
    }
  }

  void setModel(String name) {
    Agent agent =
        client.agents.getAgent(GetAgentRequest.newBuilder().setAgentKey(agentKey).build());
    client.agents.updateAgent(
        UpdateAgentRequest.newBuilder()
            .setAgent(
                Agent.newBuilder()
                    .setKey(agent.getKey())
                    .setEtag(agent.getEtag())
                    .setModel(model(name)))
            .setUpdateMask(FieldMask.newBuilder().addPaths("model"))
            .build());
  }

  void listBack() {
    ListEventsRequest.Builder request =
        ListEventsRequest.newBuilder().setAgentKey(agentKey).setSessionKey(SESSION).setPageSize(3);
    List<Event> events = new ArrayList<>();
    int pages = 0;
    do {
      ListEventsResponse page = client.events.listEvents(request.build());
      events.addAll(page.getEventsList());
      request.setPageToken(page.getNextPageToken());
      pages++;
    } while (!request.getPageToken().isEmpty());
    List<Turn> turns =
        client
            .turns
            .listTurns(
                ListTurnsRequest.newBuilder().setAgentKey(agentKey).setSessionKey(SESSION).build())
            .getTurnsList();
    OneofDescriptor payload =
        Event.getDescriptor().getOneofs().stream()
            .filter(oneof -> oneof.getName().equals("payload"))
            .findFirst()
            .orElseThrow();
    Map<String, Object> facts = new LinkedHashMap<>();
    facts.put("pages", pages);
    facts.put("events", events.stream().map(Event::getId).toList());
    facts.put("sequences", events.stream().map(Event::getSequence).toList());
    facts.put(
        "types",
        events.stream().map(e -> e.getOneofFieldDescriptor(payload).getName()).toList());
    facts.put(
        "tool_inputs",
        events.stream()
            .filter(Event::hasToolInput)
            .map(event -> event.getToolInput().getToolInputJson())
            .toList());
    facts.put("turns", turns.stream().map(Turn::getId).toList());
    say("listed", facts);
  }

  /** Runs the conversation: the agent's key, and the file of scripts. */
  public static void main(String[] arguments) throws Exception {
    String apiKey = System.getenv().getOrDefault("HANSARD_API_KEY", "");
    JsonObject scripts =
        JsonParser.parseString(Files.readString(Path.of(arguments[1]))).getAsJsonObject();
    try (Client client = new Client(apiKey)) {
      Conversation talk = new Conversation(client, arguments[0], scripts);
      Rules rules = new Rules(talk);
      talk.create();
      rules.check();
      talk.exchangeFile();
      talk.cutAndResume();
      talk.surviveKill();
      talk.surviveDrain();
      rules.meetErrors();
      talk.listBack();
      say("done", Map.of());
    }
  }
}
