// The wire protocol in another language, from the known answers alone: what it takes, and that it agrees.
//
// Usage: node verify.mjs DIRECTORY. Prints the number of checks, or says what differs and exits with 1.

import { createHash, createHmac, createPrivateKey, createPublicKey, sign, verify } from "node:crypto";
import { readFileSync } from "node:fs";
import { join } from "node:path";

const directory = process.argv[2];
const known = (name) => JSON.parse(readFileSync(join(directory, `${name}.json`), "utf8"));
let checks = 0;

function check(condition, what) {
  if (!condition) {
    console.error(`differs: ${what}`);
    process.exit(1);
  }
  checks += 1;
}

const sha256 = (...parts) => parts.reduce((hash, part) => hash.update(part), createHash("sha256")).digest();
const hex = (text) => Buffer.from(text, "hex");
const base64 = (text) => Buffer.from(text, "base64");
const base64url = (text) => Buffer.from(text, "base64url");

// --- keys (RFC 8032; the PKCS #8 and SPKI prefixes are those of RFC 8410)

const privateKey = (seed) =>
  createPrivateKey({ key: Buffer.concat([hex("302e020100300506032b657004220420"), seed]), format: "der", type: "pkcs8" });
const publicKey = (raw) =>
  createPublicKey({ key: Buffer.concat([hex("302a300506032b6570032100"), raw]), format: "der", type: "spki" });
const rawOf = (seed) => createPublicKey(privateKey(seed)).export({ format: "der", type: "spki" }).subarray(12);
const keyId = (raw) => sha256(raw).toString("hex").slice(0, 32);
const isSigned = (raw, message, signature) => verify(null, message, publicKey(raw), signature);

for (const each of known("keys")) {
  const raw = rawOf(hex(each.seed));
  check(raw.toString("hex") === each.public_key, "public key of a seed");
  check(keyId(raw) === each.key_id && sha256(raw).toString("hex") === each.fingerprint, "key id");
  check(sign(null, hex(each.message), privateKey(hex(each.seed))).toString("hex") === each.signature, "signature");
  check(isSigned(raw, hex(each.message), hex(each.signature)), "verification");
  check(!isSigned(raw, Buffer.concat([hex(each.message), hex("00")]), hex(each.signature)), "another message");
}

// --- envelopes (DSSE)

function pae(type, body) {
  const kind = Buffer.from(type, "utf8");
  return Buffer.concat([Buffer.from(`DSSEv1 ${kind.length} `), kind, Buffer.from(` ${body.length} `), body]);
}

// The payload of an envelope of this type that one of these raw keys signed; null when it must not be trusted.
function open(wire, type, ...keys) {
  const envelope = JSON.parse(wire);
  if (envelope.payloadType !== type) return null;
  const body = base64(envelope.payload);
  const signed = envelope.signatures.some(({ keyid, sig }) =>
    keys.some((raw) => keyId(raw) === keyid && isSigned(raw, pae(type, body), base64(sig))),
  );
  return signed ? body : null;
}

for (const each of known("envelopes")) {
  const body = hex(each.payload);
  check(pae(each.type, body).toString("hex") === each.pae, "signing input of an envelope");
  for (const seed of each.seeds) check(open(each.wire, each.type, rawOf(hex(seed)))?.equals(body), "envelope");
  check(open(each.wire, `${each.type}x`, rawOf(hex(each.seeds[0]))) === null, "another payload type");
}

// --- trust: the root chain and the bundle

{
  const trust = known("trust");
  let before = null;
  for (const [index, wire] of trust.roots.entries()) {
    const claimed = JSON.parse(base64(JSON.parse(wire).payload));
    const raw = base64(claimed.key.key);
    const type = "application/vnd.redflag.root.v1+json";
    if (before === null) check(sha256(raw).toString("hex") === trust.root_fp, "the pinned root");
    else check(open(wire, type, before) !== null, "a root is signed by the one before");
    check(open(wire, type, raw) !== null && claimed.n === index + 1, "a root is signed by itself");
    before = raw;
  }
  const bundle = JSON.parse(open(trust.bundle, "application/vnd.redflag.bundle.v1+json", before));
  check(sha256(Buffer.from(trust.bundle)).toString("hex") === trust.bundle_digest, "digest of the bundle");
  check(bundle.version === trust.version && bundle.epoch === trust.epoch, "version and epoch of the bundle");
  for (const [role, id] of Object.entries(trust.live)) {
    const live = bundle.keys.filter((key) => key.role === role && key.not_before <= trust.now && trust.now <= key.not_after);
    check(live.some((key) => keyId(base64(key.key)) === id), `the live key of the role ${role}`);
  }
}

// --- signed requests (RFC 9421 in one profile)

for (const each of known("signed_requests")) {
  const headers = Object.fromEntries(each.headers);
  const added = Object.fromEntries(each.added);
  const names = ["@method", "@authority", "@path", "@query", "content-digest"];
  for (const name of ["content-encoding", "authorization"]) if (name in headers) names.push(name);
  const digest = `sha-256=:${sha256(hex(each.body)).toString("base64")}:`;
  const raw = rawOf(hex(each.seed));
  const params =
    `(${names.map((name) => `"${name}"`).join(" ")});created=${each.created};expires=${each.created + 300}` +
    `;nonce="${each.nonce}";keyid="${keyId(raw)}";alg="ed25519";tag="redflag-agent-v1"`;
  const values = {
    "@method": each.method,
    "@authority": each.authority,
    "@path": each.path || "/",
    "@query": `?${each.query}`,
    "content-digest": digest,
    ...headers,
  };
  const base = [...names.map((name) => `"${name}": ${values[name]}`), `"@signature-params": ${params}`].join("\n");
  check(base === each.signing_input, "signature base");
  check(added["content-digest"] === digest && added["signature-input"] === `rf=${params}`, "added headers");
  const signature = added.signature.match(/^rf=:(.*):$/)[1];
  check(isSigned(raw, Buffer.from(base), base64(signature)), "signature of a request");
}

// --- commands and statements

const COMMAND = "application/vnd.redflag.command.v1+json";

for (const each of known("commands")) {
  const payload = open(each.wire, COMMAND, rawOf(hex(each.seed)));
  const body = JSON.parse(payload);
  check(JSON.stringify(body) === JSON.stringify(sorted(each.body)), "body of a command");
  check(sha256(payload).toString("hex") === each.hash, "hash of a command");
  const digest = sha256(pae(body.type, base64(body.params)), body.cmd_id).toString("hex");
  check(digest === each.digest && base64(body.params).toString() === each.params, "digest of a command");
}

function sorted(value) {
  if (Array.isArray(value)) return value.map(sorted);
  if (value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.keys(value).sort().map((name) => [name, sorted(value[name])]));
}

for (const each of known("statements")) {
  const type = JSON.parse(each.wire).payloadType;
  check(/^application\/vnd\.redflag\.(accepted|refused|result)\.v1\+json$/.test(type), "type of a statement");
  const said = JSON.parse(open(each.wire, type, rawOf(hex(each.seed))));
  check(JSON.stringify(said) === JSON.stringify(sorted(each.statement)), "a statement");
  check(open(each.wire, COMMAND, rawOf(hex(each.seed))) === null, "a statement is no command");
}

// --- Merkle trees (RFC 9162, section 2.1)

const leafHash = (leaf) => sha256(hex("00"), leaf);
const nodeHash = (left, right) => sha256(hex("01"), left, right);

function treeRoot(hashes) {
  if (hashes.length === 0) return sha256("");
  if (hashes.length === 1) return hashes[0];
  const half = 2 ** Math.floor(Math.log2(hashes.length - 1));
  return nodeHash(treeRoot(hashes.slice(0, half)), treeRoot(hashes.slice(half)));
}

// Section 2.1.3.2.
function includes(hash, index, size, proof, root) {
  if (index >= size) return false;
  let [fn, sn, result] = [index, size - 1, hash];
  for (const node of proof) {
    if (sn === 0) return false;
    if (fn % 2 === 1 || fn === sn) {
      result = nodeHash(node, result);
      while (fn % 2 === 0 && fn !== 0) [fn, sn] = [Math.floor(fn / 2), Math.floor(sn / 2)];
    } else result = nodeHash(result, node);
    [fn, sn] = [Math.floor(fn / 2), Math.floor(sn / 2)];
  }
  return sn === 0 && result.equals(root);
}

// Section 2.1.4.2.
function isConsistent(first, firstRoot, size, root, proof) {
  if (first === size) return proof.length === 0 && firstRoot.equals(root);
  if (first === 0) return proof.length === 0;
  const path = Number.isInteger(Math.log2(first)) ? [firstRoot, ...proof] : proof;
  if (path.length === 0) return false;
  let [fn, sn] = [first - 1, size - 1];
  while (fn % 2 === 1) [fn, sn] = [Math.floor(fn / 2), Math.floor(sn / 2)];
  let [fr, sr] = [path[0], path[0]];
  for (const node of path.slice(1)) {
    if (sn === 0) return false;
    if (fn % 2 === 1 || fn === sn) {
      [fr, sr] = [nodeHash(node, fr), nodeHash(node, sr)];
      while (fn % 2 === 0 && fn !== 0) [fn, sn] = [Math.floor(fn / 2), Math.floor(sn / 2)];
    } else sr = nodeHash(sr, node);
    [fn, sn] = [Math.floor(fn / 2), Math.floor(sn / 2)];
  }
  return sn === 0 && fr.equals(firstRoot) && sr.equals(root);
}

for (const each of known("merkle")) {
  const hashes = each.leaves.map((leaf) => leafHash(hex(leaf)));
  for (const [size, root] of Object.entries(each.roots))
    check(treeRoot(hashes.slice(0, Number(size))).toString("hex") === root, "root of a tree");
  const rootOf = (size) => hex(each.roots[String(size)]);
  for (const { index, size, proof } of each.inclusion) {
    check(includes(hashes[index], index, size, proof.map(hex), rootOf(size)), "inclusion");
    if (size > 1) check(!includes(hashes[(index + 1) % size], index, size, proof.map(hex), rootOf(size)), "another leaf");
  }
  for (const { first, size, proof } of each.consistency)
    check(isConsistent(first, rootOf(first), size, rootOf(size), proof.map(hex)), "consistency");
}

// --- the audit log: entries, heads, checkpoints, witnesses

const AUDIT = "application/vnd.redflag";
const ZEROS = "0".repeat(64);

// Whether these lines are the history of an organization, from its first entry on; the hashes of its leaves if so.
function history(lines, organization) {
  const hashes = [];
  for (const [index, line] of lines.entries()) {
    const entry = JSON.parse(line);
    const { digest, previous, position } = entry;
    const leaf = pae(`${AUDIT}.audit-entry.v1+json`, canonical({ digest, organization, position, previous }));
    const expected = { organization, position: index + 1, previous: hashes.at(-1)?.toString("hex") ?? ZEROS };
    if (Object.entries(expected).some(([name, value]) => entry[name] !== value)) return null;
    if (leafHash(leaf).toString("hex") !== entry.hash) return null;
    const payload = entry.payload === null ? null : Buffer.from(entry.payload, "utf8");
    if (payload !== null && sha256(hex(entry.salt), payload).toString("hex") !== digest) return null;
    hashes.push(leafHash(leaf));
  }
  return hashes;
}

function canonical(value) {
  return Buffer.from(JSON.stringify(sorted(value)), "utf8");
}

// The checkpoint that this evidence is of; null when it must not be trusted.
function openEvidence(evidence, organization, server, key) {
  const body = open(base64(evidence.checkpoint), `${AUDIT}.checkpoint.v1+json`, rawOf(key));
  if (body === null || evidence.head.organization !== organization) return null;
  const checkpoint = JSON.parse(body);
  const leaf = pae(`${AUDIT}.audit-head.v1+json`, canonical(evidence.head));
  const [proof, root] = [evidence.proof.map(hex), hex(checkpoint.root)];
  const isIn = includes(leafHash(leaf), evidence.index, checkpoint.organizations, proof, root);
  return checkpoint.server === server && isIn ? checkpoint : null;
}

{
  const each = known("audit");
  const { organization, server } = each;
  const hashes = history(each.lines, organization);
  check(hashes !== null && hashes.length === each.lines.length, "a history");
  for (const [index, leaf] of each.leaves.entries())
    check(leafHash(Buffer.from(leaf)).equals(hashes[index]), "the leaf of an entry");
  for (const [index, root] of each.roots.entries())
    check(treeRoot(hashes.slice(0, index + 1)).toString("hex") === root, "root of a history");
  check(history([...each.lines].reverse(), organization) === null, "entries out of order");
  check(history(each.lines.slice(1), organization) === null, "an entry is missing");
  check(history([each.lines[0].replace("kind", "Kind")], organization) === null, "an edited payload");

  const headRoot = treeRoot(each.head_leaves.map((leaf) => leafHash(Buffer.from(leaf))));
  check(headRoot.toString("hex") === each.checkpoints[1].root, "root of a checkpoint");
  const seed = hex(each.seed);
  for (const [index, evidence] of each.evidence.entries()) {
    const checkpoint = openEvidence(evidence, organization, server, seed);
    check(JSON.stringify(sorted(checkpoint)) === JSON.stringify(sorted(each.checkpoints[index])), "a checkpoint");
    check(evidence.head.root === each.roots[evidence.head.size - 1], "the head of a history");
    check(openEvidence(evidence, organization, server, Buffer.alloc(32)) === null, "evidence of another key");
    const longer = { ...evidence, head: { ...evidence.head, size: evidence.head.size + 1 } };
    check(openEvidence(longer, organization, server, seed) === null, "another head");
  }

  const [kept, shown] = each.evidence.map(({ head }) => head);
  const proof = each.consistency.map(hex);
  check(isConsistent(kept.size, hex(kept.root), shown.size, hex(shown.root), proof), "what a witness is shown");
  check(!isConsistent(kept.size, hex(shown.root), shown.size, hex(shown.root), proof), "another past");
  const { position, proof: inclusion } = each.inclusion;
  const hash = hashes[position - 1];
  check(includes(hash, position - 1, shown.size, inclusion.map(hex), hex(shown.root)), "one entry of a history");
  check(!includes(hash, position, shown.size, inclusion.map(hex), hex(shown.root)), "another position");
}

// --- approvals

{
  const each = known("approvals");
  const type = "application/vnd.redflag.approval.v1+json";
  const operator = rawOf(hex(each.seed));
  const approval = JSON.parse(open(each.wire, type, operator));
  check(JSON.stringify(approval) === JSON.stringify(sorted(each.approval)), "an approval");
  for (const [index, wire] of each.commands.entries()) {
    const command = JSON.parse(open(wire, COMMAND, rawOf(hex(each.command_seed))));
    const leaf = pae(
      "application/vnd.redflag.approval-leaf.v1+json",
      Buffer.from(
        JSON.stringify({
          agent_id: command.agent_id,
          machine_binding: command.machine_binding,
          params: sha256(base64(command.params)).toString("hex"),
          type: command.type,
        }),
      ),
    );
    check(leaf.toString() === each.leaves[index], "the leaf of a command");
    const shown = command.approval;
    check(open(base64(shown.envelope), type, operator) !== null, "the approval in a command");
    const proof = shown.proof.map(base64);
    const root = hex(approval.merkle_root);
    check(includes(leafHash(leaf), shown.index, approval.leaves, proof, root), "the proof of a command");
    check(!includes(leafHash(Buffer.concat([leaf, hex("00")])), shown.index, approval.leaves, proof, root), "another command");
  }
}

// --- machine evidence

{
  const each = known("machines");
  const component = (raw) => createHmac("sha256", raw).update(hex(each.app_id)).digest().subarray(0, 16);
  for (const { raw, component: expected } of each.serials)
    check(component(Buffer.from(raw)).toString("hex") === expected, "component of a serial number");
  for (const { raw, component: expected } of each.machine_ids) {
    const id = component(hex(raw));
    id[6] = (id[6] & 0x0f) | 0x40;
    id[8] = (id[8] & 0x3f) | 0x80;
    check(id.toString("hex") === expected, "component of a machine id");
  }
  const text = JSON.stringify(sorted(each.evidence.value));
  check(sha256(Buffer.from(text)).toString("hex") === each.evidence.digest, "digest of evidence");
}

// --- webhooks (Standard Webhooks, v1 and v1a)

for (const each of known("webhooks")) {
  const input = Buffer.concat([Buffer.from(`${each.id}.${each.timestamp}.`), hex(each.body)]);
  const signatures = each.headers["webhook-signature"].split(" ").map((part) => part.split(","));
  for (const text of each.verified_with) {
    const end = text.indexOf("_") + 1;
    const [prefix, raw] = [text.slice(0, end), base64(text.slice(end))];
    const good = signatures.some(([version, value]) =>
      prefix === "whsec_"
        ? version === "v1" && createHmac("sha256", raw).update(input).digest("base64") === value
        : version === "v1a" && isSigned(raw, input, base64(value)),
    );
    check(good, "signature of a webhook");
  }
}

// --- registration tokens

for (const each of known("registration_tokens")) {
  const [version, body] = each.text.split(".");
  check(version === "rfreg1", "version of a registration token");
  check(JSON.stringify(JSON.parse(base64url(body))) === JSON.stringify(sorted(each.token)), "a registration token");
  check(sha256(base64url(each.token.secret)).toString("hex") === each.secret_digest, "digest of its secret");
}

console.log(checks);
