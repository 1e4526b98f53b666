import com.google.protobuf.Any;
import com.google.protobuf.InvalidProtocolBufferException;
import com.google.rpc.BadRequest;
import com.google.rpc.ErrorInfo;
import com.google.rpc.QuotaFailure;
import com.google.rpc.RetryInfo;
import hansard.v1.AccessServiceGrpc;
import hansard.v1.AgentServiceGrpc;
import hansard.v1.ArtifactServiceGrpc;
import hansard.v1.EventServiceGrpc;
import hansard.v1.SessionServiceGrpc;
import hansard.v1.TurnServiceGrpc;
import io.grpc.Channel;
import io.grpc.ClientInterceptors;
import io.grpc.Grpc;
import io.grpc.InsecureChannelCredentials;
import io.grpc.ManagedChannel;
import io.grpc.Metadata;
import io.grpc.StatusRuntimeException;
import io.grpc.protobuf.StatusProto;
import io.grpc.stub.MetadataUtils;
import java.util.LinkedHashMap;
import java.util.Map;

/** The services of one server. Every call carries the API key and waits for a server that restarts. */
final class Client implements AutoCloseable {
  private static final Metadata.Key<String> AUTHORIZATION =
      Metadata.Key.of("authorization", Metadata.ASCII_STRING_MARSHALLER);

  final AccessServiceGrpc.AccessServiceBlockingStub access;
  final AgentServiceGrpc.AgentServiceBlockingStub agents;
  final SessionServiceGrpc.SessionServiceBlockingStub sessions;
  final EventServiceGrpc.EventServiceBlockingStub events;
  final TurnServiceGrpc.TurnServiceBlockingStub turns;
  final ArtifactServiceGrpc.ArtifactServiceBlockingStub artifacts;
  final ArtifactServiceGrpc.ArtifactServiceStub uploads;
  private final ManagedChannel connection;

  Client(String apiKey) {
    connection =
        Grpc.newChannelBuilder(System.getenv("HANSARD_TARGET"), InsecureChannelCredentials.create())
            .build();
    Metadata headers = new Metadata();
    if (!apiKey.isEmpty()) {
      headers.put(AUTHORIZATION, "Bearer " + apiKey);
    }
    Channel channel =
        ClientInterceptors.intercept(
            connection, MetadataUtils.newAttachHeadersInterceptor(headers));
    access = AccessServiceGrpc.newBlockingStub(channel).withWaitForReady();
    agents = AgentServiceGrpc.newBlockingStub(channel).withWaitForReady();
    sessions = SessionServiceGrpc.newBlockingStub(channel).withWaitForReady();
    events = EventServiceGrpc.newBlockingStub(channel).withWaitForReady();
    turns = TurnServiceGrpc.newBlockingStub(channel).withWaitForReady();
    artifacts = ArtifactServiceGrpc.newBlockingStub(channel).withWaitForReady();
    uploads = ArtifactServiceGrpc.newStub(channel).withWaitForReady();
  }

  @Override
  public void close() {
    connection.shutdownNow();
  }

  /** Returns what the status of a failed call told. */
  static Map<String, Object> failure(StatusRuntimeException error) {
    com.google.rpc.Status status = StatusProto.fromThrowable(error);
    return failure(error.getStatus().getCode().name(), status);
  }

  /** Returns what a google.rpc.Status tells. */
  static Map<String, Object> failure(String code, com.google.rpc.Status status) {
    Map<String, Object> told = new LinkedHashMap<>();
    told.put("code", code);
    for (Any detail : status.getDetailsList()) {
      try {
        if (detail.is(ErrorInfo.class)) {
          ErrorInfo info = detail.unpack(ErrorInfo.class);
          told.put("reason", info.getReason());
          told.put("domain", info.getDomain());
          told.put("metadata", info.getMetadataMap());
        } else if (detail.is(BadRequest.class)) {
          told.put(
              "fields",
              detail.unpack(BadRequest.class).getFieldViolationsList().stream()
                  .map(BadRequest.FieldViolation::getField)
                  .sorted()
                  .toList());
        } else if (detail.is(QuotaFailure.class)) {
          told.put(
              "quota",
              detail.unpack(QuotaFailure.class).getViolationsList().stream()
                  .map(QuotaFailure.Violation::getSubject)
                  .toList());
        } else if (detail.is(RetryInfo.class)) {
          com.google.protobuf.Duration delay = detail.unpack(RetryInfo.class).getRetryDelay();
          told.put("retry_s", delay.getSeconds() + delay.getNanos() / 1e9);
        }
      } catch (InvalidProtocolBufferException error) {
        throw new IllegalStateException(error);
      }
    }
    return told;
  }
}
