// Calls with @grpc/grpc-js for a script that speaks JSON lines: the protocol's messages come by server reflection.
// Usage: node grpc_js.js SITE.json; a line in is a call, a line out is what came of it. NODE_PATH names the packages.
"use strict";
const fs = require("fs");
const readline = require("readline");
const grpc = require("@grpc/grpc-js");
const loader = require("@grpc/proto-loader");

const site = JSON.parse(fs.readFileSync(process.argv[2], "utf8"));
const OPTIONS = { keepCase: true, longs: String, enums: String, bytes: String, defaults: false, oneofs: false };
const CODINGS = { "": 0, deflate: 1, gzip: 2 };
// What grpc.reflection.v1alpha.ServerReflection is asked and answers, as far as it is needed here.
const REFLECTION = {
  nested: { grpc: { nested: { reflection: { nested: { v1alpha: { nested: {
    ServerReflectionRequest: { fields: {
      file_containing_symbol: { type: "string", id: 4 }, file_by_filename: { type: "string", id: 3 },
      list_services: { type: "string", id: 7 } } },
    FileDescriptorResponse: { fields: { file_descriptor_proto: { rule: "repeated", type: "bytes", id: 1 } } },
    ServiceResponse: { fields: { name: { type: "string", id: 1 } } },
    ListServiceResponse: { fields: { service: { rule: "repeated", type: "ServiceResponse", id: 1 } } },
    ErrorResponse: { fields: { error_code: { type: "int32", id: 1 }, error_message: { type: "string", id: 2 } } },
    ServerReflectionResponse: { fields: {
      file_descriptor_response: { type: "FileDescriptorResponse", id: 4 },
      list_services_response: { type: "ListServiceResponse", id: 6 },
      error_response: { type: "ErrorResponse", id: 7 } } },
    ServerReflection: { methods: { ServerReflectionInfo: {
      requestType: "ServerReflectionRequest", requestStream: true,
      responseType: "ServerReflectionResponse", responseStream: true } } },
  } } } } } } },
};
const HEALTH = {
  nested: { grpc: { nested: { health: { nested: { v1: { nested: {
    HealthCheckRequest: { fields: { service: { type: "string", id: 1 } } },
    HealthCheckResponse: { fields: { status: { type: "ServingStatus", id: 1 } },
      nested: { ServingStatus: { values: { UNKNOWN: 0, SERVING: 1, NOT_SERVING: 2 } } } },
    Health: { methods: { Check: { requestType: "HealthCheckRequest", responseType: "HealthCheckResponse" } } },
  } } } } } } },
};

const credentials = grpc.credentials.createSsl(fs.readFileSync(site.ca));
const options = {
  "grpc.ssl_target_name_override": site.tls_name,
  "grpc.max_receive_message_length": -1,
  "grpc.max_send_message_length": -1,
};
let services = {};
const clients = {};

function client(service, coding) {
  const key = service + " " + coding;
  if (!clients[key]) {
    const told = { ...options, "grpc.default_compression_algorithm": CODINGS[coding] };
    clients[key] = new (grpc.makeGenericClientConstructor(services[service], service))(site.grpc, credentials, told);
  }
  return clients[key];
}

function metadataOf(headers) {
  const metadata = new grpc.Metadata();
  for (const [name, value] of Object.entries(headers)) metadata.set(name, value);
  return metadata;
}

// One question of reflection, over a stream of its own.
function reflect(question, headers) {
  return new Promise((resolve, reject) => {
    const name = "grpc.reflection.v1alpha.ServerReflection";
    const call = client(name, "").ServerReflectionInfo(metadataOf(headers), { deadline: Date.now() + 20000 });
    call.on("data", (answer) => { resolve(answer); call.end(); });
    call.on("error", reject);
    call.write(question);
  });
}

// The file of a symbol, and all that it needs.
async function learn(symbol, headers) {
  const files = new Map();
  const wanted = [{ file_containing_symbol: symbol }];
  while (wanted.length) {
    const answer = await reflect(wanted.pop(), headers);
    if (!answer.file_descriptor_response) throw new Error(answer.error_response.error_message);
    for (const bytes of answer.file_descriptor_response.file_descriptor_proto) {
      const content = Buffer.from(bytes, "base64");
      const file = fileOf(content);
      if (files.has(file.name)) continue;
      files.set(file.name, content);
      for (const other of file.dependency) if (!files.has(other)) wanted.push({ file_by_filename: other });
    }
  }
  // FileDescriptorSet: field 1, length-delimited, for each file; what is needed stands before what needs it.
  const parts = [...files.values()].reverse().map((content) => Buffer.concat([Buffer.from([10]), varint(content.length), content]));
  return loader.loadFileDescriptorSetFromBuffer(Buffer.concat(parts), OPTIONS);
}

function varint(number) {
  const bytes = [];
  for (; number > 127; number = Math.floor(number / 128)) bytes.push((number % 128) | 128);
  return Buffer.from([...bytes, number]);
}

// Name (field 1) and dependencies (field 3) of a serialized FileDescriptorProto.
function fileOf(content) {
  const found = { name: "", dependency: [] };
  let at = 0;
  const number = () => {
    let value = 0, shift = 1, byte;
    do { byte = content[at++]; value += (byte & 127) * shift; shift *= 128; } while (byte > 127);
    return value;
  };
  while (at < content.length) {
    const tag = number();
    if ((tag & 7) !== 2) { number(); continue; }
    const size = number();
    const text = content.subarray(at, at + size);
    at += size;
    if (tag >> 3 === 1) found.name = text.toString();
    if (tag >> 3 === 3) found.dependency.push(text.toString());
  }
  return found;
}

function failed(error) {
  return { code: grpc.status[error.code] || String(error.code), text: error.details || String(error.message || error) };
}

function unary(asked) {
  return new Promise((resolve) => {
    const told = { deadline: Date.now() + asked.seconds * 1000 };
    const call = client(asked.service, asked.coding)[asked.method](
      asked.request, metadataOf(asked.metadata), told,
      (error, answer) => resolve(error ? failed(error) : { answer }),
    );
    if (asked.cancel) setTimeout(() => call.cancel(), asked.cancel * 1000);
  });
}

function stream(asked) {
  return new Promise((resolve) => {
    const answers = [];
    const told = { deadline: Date.now() + asked.seconds * 1000 };
    const call = client(asked.service, "")[asked.method](metadataOf(asked.metadata), told);
    call.on("data", (answer) => answers.push(answer));
    call.on("error", (error) => resolve({ answers, ...failed(error) }));
    call.on("end", () => resolve({ answers }));
    for (const request of asked.requests) call.write(request);
    call.end();
  });
}

async function main() {
  services["grpc.reflection.v1alpha.ServerReflection"] =
    loader.fromJSON(REFLECTION, OPTIONS)["grpc.reflection.v1alpha.ServerReflection"];
  services["grpc.health.v1.Health"] = loader.fromJSON(HEALTH, OPTIONS)["grpc.health.v1.Health"];
  for await (const line of readline.createInterface({ input: process.stdin })) {
    const asked = JSON.parse(line);
    let found;
    try {
      if (asked.services) {
        const listed = await reflect({ list_services: "*" }, asked.metadata);
        found = { answer: listed.list_services_response.service.map((service) => service.name) };
      } else {
        if (!services[asked.service]) Object.assign(services, await learn(asked.service, site.headers || asked.metadata));
        found = await (asked.requests ? stream(asked) : unary(asked));
      }
    } catch (error) {
      found = failed(error);
    }
    process.stdout.write(JSON.stringify(found) + "\n");
  }
  process.exit(0);
}

main();
