// Clients of @grpc/grpc-js for the services that protoc-gen-es describes.

import * as grpc from "@grpc/grpc-js";
import {
  create,
  fromBinary,
  toBinary,
  type DescMessage,
  type DescMethod,
  type DescService,
  type MessageInitShape,
  type MessageShape,
} from "@bufbuild/protobuf";

/** What a streaming call gives, typed; node's own streams yield any. */
export type Stream<M> = AsyncIterable<M> & { cancel(): void };

type Call<M> = M extends {
  methodKind: infer Kind;
  input: infer Input extends DescMessage;
  output: infer Output extends DescMessage;
}
  ? Kind extends "server_streaming"
    ? (request: MessageInitShape<Input>) => Stream<MessageShape<Output>>
    : Kind extends "client_streaming"
      ? (requests: Iterable<MessageInitShape<Input>>) => Promise<MessageShape<Output>>
      : (request: MessageInitShape<Input>) => Promise<MessageShape<Output>>
  : never;

export type Client<S extends DescService> = { [Name in keyof S["method"]]: Call<S["method"][Name]> };

/** Returns a client whose methods are the service's: promises, and readable streams. */
export function makeClient<S extends DescService>(
  service: S,
  connection: grpc.Client,
  metadata: () => grpc.Metadata,
): Client<S> {
  const calls = service.methods.map((method) => [
    method.localName,
    makeCall(method, connection, metadata),
  ]);
  return Object.fromEntries(calls) as Client<S>;
}

function makeCall(method: DescMethod, connection: grpc.Client, metadata: () => grpc.Metadata) {
  const path = `/${method.parent.typeName}/${method.name}`;
  const encode = (request: MessageInitShape<DescMessage>) =>
    Buffer.from(toBinary(method.input, create(method.input, request)));
  const decode = (bytes: Buffer) => fromBinary(method.output, bytes);
  switch (method.methodKind) {
    case "server_streaming":
      return (request: MessageInitShape<DescMessage>) =>
        connection.makeServerStreamRequest(path, encode, decode, request, metadata());
    case "client_streaming":
      return (requests: Iterable<MessageInitShape<DescMessage>>) =>
        new Promise((resolve, reject) => {
          const call = connection.makeClientStreamRequest(
            path,
            encode,
            decode,
            metadata(),
            (error, answer) => (error ? reject(error) : resolve(answer)),
          );
          for (const part of requests) call.write(part);
          call.end();
        });
    case "unary":
      return (request: MessageInitShape<DescMessage>) =>
        new Promise((resolve, reject) => {
          connection.makeUnaryRequest(path, encode, decode, request, metadata(), (error, answer) =>
            error ? reject(error) : resolve(answer),
          );
        });
    default:
      throw new Error(`${path}: this contract has no such call`);
  }
}
