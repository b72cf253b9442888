// SPDX-License-Identifier: Apache-2.0

// The wrapper with a scripted client: no service anywhere.

import assert from "node:assert/strict";
import { createServer } from "node:http";
import type { AddressInfo } from "node:net";
import { test } from "node:test";

import { status } from "@grpc/grpc-js";

import { BuildFailedError, BuildRequest, BuildResponse, BuildStatus, LogInfo, LogsRequest, PromisifiedImageBuilderClient, RefusedError, followLog } from "..";
import { scripted } from "../testing";

const request = BuildRequest.fromPartial({});
const running = (message: string) =>
    BuildResponse.fromPartial({
        ref: "ref",
        baseRef: "base",
        status: BuildStatus.running,
        message,
        info: { buildId: "id", logInfo: { url: "http://localhost/logs/1" } },
    });
const ended = (status: BuildStatus, message = "") => BuildResponse.fromPartial({ ref: "ref", baseRef: "base", status, message });

test("an image that is there needs no build", async () => {
    const client = new PromisifiedImageBuilderClient(scripted({ build: [ended(BuildStatus.done_success)] }));
    const staged = await client.build(request);
    assert.deepEqual([staged.ref, staged.baseRef, staged.actuallyNeedsBuild, staged.buildId], ["ref", "base", false, undefined]);
    assert.equal((await staged.buildPromise).status, BuildStatus.done_success);
    await assert.rejects(staged.logPromise, /no log/);
});

test("a build is followed to its end", async () => {
    const client = new PromisifiedImageBuilderClient(scripted({ build: [running("one"), running("two"), ended(BuildStatus.done_success)] }));
    const staged = await client.build(request);
    assert.deepEqual([staged.actuallyNeedsBuild, staged.buildId], [true, "id"]);
    assert.equal((await staged.logPromise).url, "http://localhost/logs/1");
    assert.equal((await staged.buildPromise).status, BuildStatus.done_success);
});

test("a failed build is an error with the service's words", async () => {
    const client = new PromisifiedImageBuilderClient(scripted({ build: [running(""), ended(BuildStatus.done_failure, "build failed: no")] }));
    const staged = await client.build(request);
    await assert.rejects(staged.buildPromise, (error: Error) => error instanceof BuildFailedError && error.message === "build failed: no");
});

test("a stream that breaks off is no result", async () => {
    const broken = new PromisifiedImageBuilderClient(scripted({ build: [running(""), new Error("connection lost")] }));
    await assert.rejects((await broken.build(request)).buildPromise, /connection lost/);
    const silent = new PromisifiedImageBuilderClient(scripted({ build: [running("")] }));
    await assert.rejects((await silent.build(request)).buildPromise, /while the build was running/);
    await assert.rejects(new PromisifiedImageBuilderClient(scripted({ build: [] })).build(request), /without a word/);
    await assert.rejects(new PromisifiedImageBuilderClient(scripted({ build: [new Error("refused")] })).build(request), /refused/);
});

test("waiting ends with its signal", async () => {
    const client = new PromisifiedImageBuilderClient(scripted({ build: [running(""), "wait"], logs: ["wait"] }));
    const controller = new AbortController();
    const staged = await client.build(request, { signal: controller.signal });
    controller.abort();
    await assert.rejects(staged.buildPromise, /cancelled/);
    const later = new AbortController();
    setTimeout(() => later.abort(), 10);
    await assert.rejects(client.logs(LogsRequest.fromPartial({}), () => "continue", { signal: later.signal }), /cancelled/);
});

test("logs are passed on until they end or are not wanted any more", async () => {
    const piece = (text: string) => ({ content: Buffer.from(text) });
    const client = new PromisifiedImageBuilderClient(scripted({ logs: [piece("a"), piece("b"), "wait"] }));
    let seen = "";
    await client.logs(LogsRequest.fromPartial({}), (data) => {
        seen += data.content.toString();
        return seen === "ab" ? "stop" : "continue";
    });
    assert.equal(seen, "ab");
});

test("calls are promises", async () => {
    const client = new PromisifiedImageBuilderClient(scripted({ resolveBaseImage: { ref: "a@sha256:1" }, listBuilds: new Error("no") }));
    assert.equal((await client.resolveBaseImage({ ref: "a", useRetryClient: false })).ref, "a@sha256:1");
    await assert.rejects(client.listBuilds({}), /no/);
    await assert.rejects(client.resolveWorkspaceImage({ useRetryClient: false }), /does not expect/);
});

test("a log is gone on with where it broke off", async () => {
    const log = Buffer.from("one\ntwo\nthree\n");
    const asked: string[] = [];
    const server = createServer((incoming, outgoing) => {
        const offset = Number(new URL(incoming.url ?? "", "http://localhost").searchParams.get("offset"));
        asked.push(String(offset));
        if (incoming.headers["x-token"] !== "secret") {
            outgoing.writeHead(404).end();
            return;
        }
        const end = Math.min(offset + 6, log.length);
        outgoing.writeHead(200);
        outgoing.write(log.subarray(offset, end), () => {
            if (end < log.length) {
                setTimeout(() => outgoing.destroy(), 20);
            } else {
                outgoing.end();
            }
        });
    });
    await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
    try {
        const url = `http://127.0.0.1:${(server.address() as AddressInfo).port}/logs/1?censored=true`;
        const read = async (headers: LogInfo["headers"]) => {
            const pieces: Buffer[] = [];
            for await (const piece of followLog({ url, headers }, { pauseMs: 1 })) {
                pieces.push(piece);
            }
            return Buffer.concat(pieces).toString();
        };
        assert.equal(await read({ "x-token": "secret" }), log.toString());
        assert.deepEqual(asked, ["0", "6", "12"]);
        await assert.rejects(read({}), RefusedError);
    } finally {
        server.close();
    }
});

test("a log that is silent for long is not given up, and one that never comes is", async () => {
    let asked = 0;
    let silences = 30;
    let heldFor = 10;
    const server = createServer((_, outgoing) => {
        asked += 1;
        outgoing.writeHead(200);
        outgoing.flushHeaders();
        if (asked <= silences) {
            // What a proxy does with a connection on which nothing is said.
            setTimeout(() => outgoing.destroy(), heldFor);
        } else {
            outgoing.end("at last");
        }
    });
    await new Promise<void>((listening) => server.listen(0, "127.0.0.1", listening));
    try {
        const info = { url: `http://127.0.0.1:${(server.address() as AddressInfo).port}/logs/1`, headers: {} };
        const read = async (heldMs: number) => {
            let seen = "";
            for await (const piece of followLog(info, { tries: 5, pauseMs: 0, heldMs })) {
                seen += piece.toString();
            }
            return seen;
        };
        assert.equal(await read(1), "at last");
        assert.equal(asked, silences + 1);
        [asked, silences, heldFor] = [0, Infinity, 0];
        await assert.rejects(read(60_000));
        assert.equal(asked, 5);
    } finally {
        server.close();
    }
});

test("a log over gRPC is gone on with when the service comes back", async () => {
    const away = Object.assign(new Error("server is shutting down"), { code: status.UNAVAILABLE });
    const missing = Object.assign(new Error("build not found"), { code: status.NOT_FOUND });
    const read = async (request: Partial<LogsRequest>, streams: (string | Error)[][]) => {
        const scripts = streams.map((items) => items.map((item) => (typeof item === "string" ? { content: Buffer.from(item) } : item)));
        let opened = 0;
        const logs = (() => scripted({ logs: scripts[opened++] }).logs(LogsRequest.create())) as never;
        const client = new PromisifiedImageBuilderClient({ ...scripted({}), logs });
        let seen = "";
        for await (const piece of client.logStream(LogsRequest.fromPartial(request), { pauseMs: 0, tries: 3 })) {
            seen += piece.toString();
        }
        assert.equal(opened, scripts.length);
        return seen;
    };
    const broken = [["one\n", "tw", away], [away], ["on", "e\ntwo", "\n", "three\n"]];
    assert.equal(await read({ buildId: "id" }, broken), "one\ntwo\nthree\n");
    // Under a name there might be another build by then, and what is refused stays refused.
    await assert.rejects(read({ buildRef: "ref" }, broken), /shutting down/);
    await assert.rejects(read({ buildId: "id" }, [["one\n", missing], ["one\n"]]), /not found/);
    await assert.rejects(read({ buildId: "id" }, [[away], [away], [away], ["one\n"]]), /shutting down/);
});
