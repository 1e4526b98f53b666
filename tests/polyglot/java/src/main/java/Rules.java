import build.buf.protovalidate.Validator;
import build.buf.protovalidate.ValidatorFactory;
import build.buf.protovalidate.exceptions.ValidationException;
import build.buf.validate.FieldPath;
import build.buf.validate.FieldPathElement;
import com.google.protobuf.FieldMask;
import com.google.protobuf.Message;
import com.google.protobuf.Struct;
import com.google.protobuf.Value;
import hansard.v1.Agent;
import hansard.v1.AppendEventsRequest;
import hansard.v1.CreateApiKeyRequest;
import hansard.v1.CreateSessionRequest;
import hansard.v1.Custom;
import hansard.v1.EventDraft;
import hansard.v1.GetSessionRequest;
import hansard.v1.Model;
import hansard.v1.Role;
import hansard.v1.RoleGrant;
import hansard.v1.SendEventRequest;
import hansard.v1.Session;
import hansard.v1.Turn;
import hansard.v1.UpdateAgentRequest;
import hansard.v1.UpdateSessionRequest;
import hansard.v1.UploadArtifactsRequest;
import hansard.v1.UploadHeader;
import hansard.v1.WatchEventsRequest;
import io.grpc.Status;
import io.grpc.StatusRuntimeException;
import java.nio.charset.StandardCharsets;
import java.util.Comparator;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.stream.Collectors;

/** The contract's rules, checked here and by the server; and an error of each kind. */
final class Rules {
  private final Validator validator = ValidatorFactory.newBuilder().build();
  private final Conversation talk;

  Rules(Conversation talk) {
    this.talk = talk;
  }

  /** Returns how a call failed. */
  static Map<String, Object> failing(Runnable call) {
    try {
      Conversation.alone(
          () -> {
            call.run();
            return null;
          });
    } catch (StatusRuntimeException error) {
      return Client.failure(error);
    }
    throw new IllegalStateException("the call succeeded");
  }

  /** Returns the path and rule of each violation that the contract's rules find here. */
  private List<List<String>> violations(Message request) throws ValidationException {
    return validator.validate(request).getViolations().stream()
        .map(violation -> violation.toProto())
        .map(violation -> List.of(path(violation.getField()), violation.getRuleId()))
        .sorted(Comparator.comparing(violation -> violation.get(0)))
        .toList();
  }

  private static String path(FieldPath path) {
    return path.getElementsList().stream().map(Rules::element).collect(Collectors.joining("."));
  }

  private static String element(FieldPathElement element) {
    String index = element.hasIndex() ? "[" + element.getIndex() + "]" : "";
    return element.getFieldName() + index;
  }

  private void check(String name, Message request, Runnable call) throws ValidationException {
    Map<String, Object> facts = new LinkedHashMap<>();
    facts.put("name", name);
    facts.put("local", violations(request));
    facts.put("server", failing(call));
    Conversation.say("rule", facts);
  }

  /** Compares what the contract's rules say here with what the server says. */
  void check() throws ValidationException {
    Client client = talk.client;
    CreateSessionRequest badSession =
        CreateSessionRequest.newBuilder().setAgentKey("no spaces").build();
    check("patterns", badSession, () -> client.sessions.createSession(badSession));
    SendEventRequest noInput =
        SendEventRequest.newBuilder()
            .setAgentKey(talk.agentKey)
            .setSessionKey(Conversation.SESSION)
            .build();
    check("oneof", noInput, () -> client.events.sendEvent(noInput).next());
    UploadArtifactsRequest badFile =
        UploadArtifactsRequest.newBuilder()
            .setHeader(UploadHeader.newBuilder().setFilename("../table.bin"))
            .build();
    check("cel of a field", badFile, () -> talk.upload(List.of(badFile)));
    UpdateSessionRequest badUpdate =
        UpdateSessionRequest.newBuilder()
            .setSession(
                Session.newBuilder().setAgentKey(talk.agentKey).setKey(Conversation.SESSION))
            .setUpdateMask(FieldMask.newBuilder().addPaths("name"))
            .build();
    check("cel of a message", badUpdate, () -> client.sessions.updateSession(badUpdate));
    AppendEventsRequest badAppend =
        AppendEventsRequest.newBuilder()
            .setAgentKey(talk.agentKey)
            .setSessionKey(Conversation.SESSION)
            .addEvents(draft("com.example.rating"))
            .addEvents(draft("rating"))
            .build();
    check("nested", badAppend, () -> client.events.appendEvents(badAppend));
    if (!violations(talk.input("Hello?", "hello").build()).isEmpty()) {
      throw new IllegalStateException("a good request breaks rules");
    }
  }

  private static EventDraft draft(String customType) {
    Custom custom = Custom.newBuilder().setCustomType(customType).setDataJson("5").build();
    return EventDraft.newBuilder().setCustom(custom).build();
  }

  private static void met(String name, Map<String, Object> failure) {
    Map<String, Object> facts = new LinkedHashMap<>(failure);
    facts.put("name", name);
    Conversation.say("error", facts);
  }

  /** Meets an error of each kind. */
  void meetErrors() {
    Client client = talk.client;
    GetSessionRequest.Builder get =
        GetSessionRequest.newBuilder()
            .setAgentKey(talk.agentKey)
            .setSessionKey(Conversation.SESSION);
    GetSessionRequest absent = get.clone().setSessionKey("absent").build();
    met("absent", failing(() -> client.sessions.getSession(absent)));
    CreateSessionRequest again =
        CreateSessionRequest.newBuilder()
            .setAgentKey(talk.agentKey)
            .setKey(Conversation.SESSION)
            .setName("Another")
            .build();
    met("exists", failing(() -> client.sessions.createSession(again)));
    SendEventRequest wrong = talk.input("Hello?", "sequence").setExpectedLastSequence(1).build();
    met("sequence", failing(() -> client.events.sendEvent(wrong).next()));
    SendEventRequest other = talk.input("Other.", "cut").build();
    met("reused", failing(() -> client.events.sendEvent(other).next()));
    Value none = Value.newBuilder().setStringValue("none").build();
    Model model =
        Model.newBuilder()
            .setName("hansard/scripted")
            .setParameters(Struct.newBuilder().putFields("script", none))
            .build();
    UpdateAgentRequest update =
        UpdateAgentRequest.newBuilder()
            .setAgent(Agent.newBuilder().setKey(talk.agentKey).setModel(model))
            .setUpdateMask(FieldMask.newBuilder().addPaths("model"))
            .build();
    met("configuration", failing(() -> client.agents.updateAgent(update)));
    WatchEventsRequest ahead = talk.watch().setAfterSequence(1_000_000).build();
    met("range", failing(() -> client.events.watchEvents(ahead).next()));
    byte[] more = "more".getBytes(StandardCharsets.UTF_8);
    met("quota", failing(() -> talk.upload(more, "more", Conversation.checksum(more))));
    met("checksum", failing(() -> talk.upload(more, "less", "0".repeat(64))));
    CreateApiKeyRequest readerKey =
        CreateApiKeyRequest.newBuilder()
            .setName("Reader")
            .addRoles(
                RoleGrant.newBuilder().setRole(Role.ROLE_AGENT_VIEWER).setAgentKey(talk.agentKey))
            .build();
    try (Client anybody = new Client("");
        Client reader = new Client(client.access.createApiKey(readerKey).getSecret())) {
      met("nobody", failing(() -> anybody.sessions.getSession(get.build())));
      SendEventRequest hello = talk.input("Hi.", "reader").build();
      met("reader", failing(() -> reader.events.sendEvent(hello).next()));
    }
    talk.setModel("failing");
    client
        .events
        .sendEvent(talk.input("Fail.", "fail").build())
        .forEachRemaining(
            item -> {
              if (item.hasTurnEnd()) {
                met("turn", failure(item.getTurnEnd().getTurn()));
              }
            });
  }

  private static Map<String, Object> failure(Turn turn) {
    int code = turn.getError().getCode();
    return Client.failure(Status.fromCodeValue(code).getCode().name(), turn.getError());
  }
}
