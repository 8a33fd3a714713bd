// Both ends of the sealed protocol in JavaScript, from docs/sealed-protocol.md: WebCrypto for all but HPKE, for which
// there are @hpke/core and @hpke/hybridkem-x-wing. Messages are protobuf's JSON, so that no protobuf library is needed.
// Usage: node client.mjs; a line in is a call, a line out is what came of it. NODE_PATH names the packages.
//
// The X-Wing of @hpke takes and gives a private key as its seed of 32 bytes, which SHAKE256 expands to the seed of
// ML-KEM-768 (64) and the X25519 key (32); the two halves by themselves cannot be imported.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(import.meta.url);
const { Aes256Gcm, CipherSuite, DhkemX25519HkdfSha256, HkdfSha256 } = require("@hpke/core");
const { XWing } = require("@hpke/hybridkem-x-wing");
const { subtle } = globalThis.crypto;

const SUITES = Object.fromEntries(
  [[1, new XWing()], [2, new DhkemX25519HkdfSha256()]].map(([number, kem]) =>
    [number, new CipherSuite({ kem, kdf: new HkdfSha256(), aead: new Aes256Gcm() })]),
);
const MIB = 1 << 20;
const SERVICE = "/sealane.inference.v1.SealedInferenceService/";
const OPENS = [SERVICE + "OpenSealedSession", SERVICE + "SealedInferStream"];

class Refused extends Error {}

// -- bytes ---------------------------------------------------------------------------------------------------------

const bytes = (text) => new Uint8Array(Buffer.from(text, "base64"));
const base64 = (data) => Buffer.from(data).toString("base64");
const base64url = (data) => Buffer.from(data).toString("base64url");
const sha256 = async (data) => new Uint8Array(await subtle.digest("SHA-256", data));
const random = (length) => globalThis.crypto.getRandomValues(new Uint8Array(length));

function concat(...parts) {
  return new Uint8Array(Buffer.concat(parts));
}

function bigEndian(number, length) {
  const out = Buffer.alloc(8);
  out.writeBigUInt64BE(BigInt(number));
  return new Uint8Array(out.subarray(8 - length));
}

function lp(...parts) {
  return concat(...parts.flatMap((part) => {
    const data = typeof part === "string" ? new TextEncoder().encode(part)
      : part instanceof Uint8Array ? part : bigEndian(part, 8);
    return [bigEndian(data.length, 4), data];
  }));
}

// -- keys ----------------------------------------------------------------------------------------------------------

async function hkdf(secret, salt, info, length) {
  const key = await subtle.importKey("raw", secret, "HKDF", false, ["deriveBits"]);
  return new Uint8Array(await subtle.deriveBits({ name: "HKDF", hash: "SHA-256", salt, info }, key, 8 * length));
}

// RFC 5869, section 2.3, which WebCrypto does not have by itself; two blocks are enough here.
async function hkdfExpand64(secret, info) {
  const key = await subtle.importKey("raw", secret, { name: "HMAC", hash: "SHA-256" }, false, ["sign"]);
  const first = new Uint8Array(await subtle.sign("HMAC", key, concat(info, bigEndian(1, 1))));
  return concat(first, new Uint8Array(await subtle.sign("HMAC", key, concat(first, info, bigEndian(2, 1)))));
}

async function thumbprint(senderKey) {
  const jwk = JSON.stringify({ crv: "Ed25519", kty: "OKP", x: base64url(senderKey) });
  return base64url(await sha256(new TextEncoder().encode(jwk)));
}

// An Ed25519 private key of 32 bytes in PKCS #8: WebCrypto has no raw form of it.
const PKCS8_HEAD = Buffer.from("302e020100300506032b657004220420", "hex");
const senderOf = (raw) => subtle.importKey("pkcs8", concat(PKCS8_HEAD, raw), "Ed25519", true, ["sign"]);

async function publicOf(sender) {
  return bytes((await subtle.exportKey("jwk", sender)).x);
}

// -- chunks --------------------------------------------------------------------------------------------------------

const chunkCount = (plaintext) => Math.max(1, Math.ceil(plaintext.length / MIB));

async function gcm(key, usage) {
  const imported = await subtle.importKey("raw", key, "AES-GCM", false, [usage]);
  return (direction, bound, index, total, data, counter) => {
    const iv = concat(bigEndian(counter ?? 0, 4), bigEndian(index, 4), bigEndian(index === total - 1 ? 1 : 0, 4));
    return subtle[usage]({ name: "AES-GCM", iv, additionalData: lp(direction, bound, index) }, imported, data);
  };
}

async function sealChunks(key, direction, bound, plaintext, counter) {
  const [cipher, total, chunks] = [await gcm(key, "encrypt"), chunkCount(plaintext), []];
  for (let i = 0; i < total; i++) {
    const part = plaintext.subarray(i * MIB, (i + 1) * MIB);
    chunks.push(base64(await cipher(direction, bound, i, total, part, counter)));
  }
  return chunks;
}

async function openChunks(key, direction, bound, chunks, counter) {
  if (!chunks.length) throw new Refused("no chunks");
  const [cipher, opened] = [await gcm(key, "decrypt"), []];
  for (const [i, chunk] of chunks.entries()) {
    opened.push(new Uint8Array(await cipher(direction, bound, i, chunks.length, bytes(chunk), counter)));
  }
  if (opened.some((part, i) => part.length > MIB || (i < opened.length - 1 && part.length < MIB))) {
    throw new Refused("not in chunks of 1 MiB");
  }
  return concat(...opened);
}

// protobuf's JSON has integers of 64 bits as text.
const issuedAt = (message) => BigInt(message.issued_at_ms);

// -- a request by itself -------------------------------------------------------------------------------------------

const infoOf = (message, token, keyId, variant) =>
  lp("sealane/seal/v1", message.suite, keyId, token.project, message.deployment, variant, message.method,
    bytes(message.request_id), token.token_id, issuedAt(message));

function envelopeHash(message, token, chunks) {
  const recipients = message.recipients.map((each) => lp(each.key_id, each.variant_digest, bytes(each.wrapped_key)));
  return sha256(concat(
    lp("sealane/envelope/v1", message.version, message.suite, token.project, message.deployment, message.method,
      bytes(message.request_id), token.token_id, issuedAt(message), bytes(message.sender_key), chunks),
    lp(...recipients),
  ));
}

async function wrap(number, publicKey, info, secret) {
  const suite = SUITES[number];
  const recipientPublicKey = await suite.kem.importKey("raw", publicKey, true);
  const { enc, ct } = await suite.seal({ recipientPublicKey, info }, secret);
  return concat(new Uint8Array(enc), new Uint8Array(ct));
}

async function unwrap(number, privateKey, info, wrapped) {
  const suite = SUITES[number];
  const recipientKey = await suite.kem.importKey("raw", privateKey, false);
  const [enc, ct] = [wrapped.slice(0, suite.kem.encSize), wrapped.slice(suite.kem.encSize)];
  return new Uint8Array(await suite.open({ recipientKey, enc, info }, ct));
}

async function sealRequest({ message, token, sender, workers, plaintext }) {
  const signer = await senderOf(bytes(sender));
  const [dataKey, requestId] = [random(32), random(16)];
  const senderKey = base64(await publicOf(signer));
  const sealed = { ...message, request_id: base64(requestId), sender_key: senderKey, recipients: [] };
  const secrets = [];
  for (const worker of workers) {
    const keyId = base64url(await sha256(bytes(worker.public)));
    const secret = random(32);
    const info = infoOf(sealed, token, keyId, worker.variant);
    const wrapped = await wrap(worker.suite, bytes(worker.public), info, concat(dataKey, secret));
    sealed.recipients.push({ key_id: keyId, variant_digest: worker.variant, wrapped_key: base64(wrapped) });
    secrets.push([keyId, secret]);
  }
  const content = plaintext === null ? null : bytes(plaintext);
  const bound = await envelopeHash(sealed, token, content === null ? 0 : chunkCount(content));
  sealed.signature = base64(await subtle.sign("Ed25519", signer, bound));
  sealed.chunks = content === null ? [] : await sealChunks(dataKey, "request", bound, content);
  const keys = secrets.map(([keyId, secret]) => told(keyId, bound, dataKey, secret));
  return { message: sealed, keys };
}

async function openRequest({ message, token, jkt, worker }) {
  const senderKey = bytes(message.sender_key);
  if (await thumbprint(senderKey) !== jkt) throw new Refused("another sender");
  const bound = await envelopeHash(message, token, message.chunks.length);
  const verifier = await subtle.importKey("raw", senderKey, "Ed25519", false, ["verify"]);
  if (!await subtle.verify("Ed25519", verifier, bytes(message.signature), bound)) throw new Refused("signature");
  const keyId = base64url(await sha256(bytes(worker.public)));
  const mine = message.recipients.filter((each) => each.key_id === keyId);
  const right = message.version === 1 && message.suite === worker.suite;
  if (mine.length !== 1 || !right) throw new Refused("not for this worker");
  const info = infoOf(message, token, keyId, worker.variant);
  const both = await unwrap(worker.suite, bytes(worker.private), info, bytes(mine[0].wrapped_key));
  const [dataKey, secret] = [both.slice(0, 32), both.slice(32)];
  const plaintext = OPENS.includes(message.method) ? null
    : base64(await openChunks(dataKey, "request", bound, message.chunks));
  return { keys: told(keyId, bound, dataKey, secret), plaintext };
}

// Of a request of a session, dataKey and secret are the session's request key and answer key.
const told = (keyId, bound, dataKey, secret, counter = null) =>
  ({ key_id: keyId, bound: base64(bound), data_key: base64(dataKey), response_secret: base64(secret), counter });

// -- answers -------------------------------------------------------------------------------------------------------

function responseKey(keys, nonce) {
  if (nonce.length !== (keys.counter === null ? 16 : 0)) throw new Refused("the nonce of another kind of answer");
  const secret = bytes(keys.response_secret);
  if (keys.counter !== null) return secret;
  return hkdf(secret, nonce, lp("sealane/response/v1", keys.key_id, bytes(keys.bound)), 32);
}

async function sealAnswer({ keys, plaintext }) {
  const nonce = keys.counter === null ? random(16) : new Uint8Array();
  const key = await responseKey(keys, nonce);
  const chunks = await sealChunks(key, "response", bytes(keys.bound), bytes(plaintext), keys.counter);
  return { key_id: keys.key_id, nonce: base64(nonce), chunks };
}

async function openAnswer({ keys, answer }) {
  const mine = keys.find((each) => each.key_id === answer.key_id);
  if (mine === undefined) throw new Refused("from a worker that it was not sealed to");
  const key = await responseKey(mine, bytes(answer.nonce));
  return base64(await openChunks(key, "response", bytes(mine.bound), answer.chunks, mine.counter));
}

// -- requests of a session or stream -------------------------------------------------------------------------------

async function sessionKeys(message, token, secret, variant, chunks) {
  const place = message.session;
  const [counter, sessionId] = [place.counter, bytes(place.session_id)];
  const both = await hkdfExpand64(bytes(secret), lp("sealane/session/v1", place.key_id, sessionId));
  const bound = await sha256(lp("sealane/session-request/v1", message.version, message.suite, place.key_id,
    token.project, message.deployment, variant, message.method, sessionId, counter, place.end ? 1 : 0,
    token.token_id, issuedAt(message), chunks));
  return [bound, both.slice(0, 32), both.slice(32)];
}

async function sealInSession({ message, token, secret, place, variant, plaintext }) {
  const [sealed, content] = [{ ...message, session: place }, bytes(plaintext)];
  const [bound, dataKey, responseSecret] = await sessionKeys(sealed, token, secret, variant, chunkCount(content));
  sealed.chunks = await sealChunks(dataKey, "request", bound, content, place.counter);
  return { message: sealed, keys: [told(place.key_id, bound, dataKey, responseSecret, place.counter)] };
}

async function openInSession({ message, token, secret, variant }) {
  const [bound, dataKey, responseSecret] = await sessionKeys(message, token, secret, variant, message.chunks.length);
  const { key_id: keyId, counter } = message.session;
  const plaintext = base64(await openChunks(dataKey, "request", bound, message.chunks, counter));
  return { keys: told(keyId, bound, dataKey, responseSecret, counter), plaintext };
}

// -- calls ---------------------------------------------------------------------------------------------------------

const CALLS = { sealRequest, openRequest, sealAnswer, openAnswer, sealInSession, openInSession };
// What the libraries throw where a key, a signature or a ciphertext is not what it should be.
const REFUSALS = [
  "DataError", "DecapError", "DeserializeError", "EncapError", "InvalidParamError", "OpenError", "OperationError",
];

for await (const line of createInterface({ input: process.stdin })) {
  const { call, ...told } = JSON.parse(line);
  let out;
  try {
    out = { result: await CALLS[call](told) };
  } catch (error) {
    const names = [error.name, error.constructor.name];
    const refused = error instanceof Refused || names.some((name) => REFUSALS.includes(name));
    out = refused ? { refused: `${error.name}: ${error.message}` } : { error: error.stack };
  }
  process.stdout.write(JSON.stringify(out) + "\n");
}
