// SPDX-License-Identifier: Apache-2.0

// What the package does with a server that really builds, named by the environment: `npm run test:server`.

import assert from "node:assert/strict";
import { writeFile } from "node:fs/promises";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";

import { credentials, status } from "@grpc/grpc-js";

import {
    BuildRequest,
    ImageBuilderClient,
    ListBuildsRequest,
    LogsRequest,
    PromisifiedImageBuilderClient,
    ResolveBaseImageRequest,
    ResolveWorkspaceImageRequest,
    SubassemblyPhase,
    SubassemblyServiceClient,
    SubassemblyStatus,
    BuildStatus,
    contentservice,
    followLog,
} from "..";

function setting(name: string): string {
    const value = process.env[name];
    assert.ok(value, `${name} is not set: these tests need a server, see tests/src/sdk.rs`);
    return value;
}

const auth = { mode: { $case: "total" as const, value: { allowAll: true } }, additional: {} };

function request(): BuildRequest {
    return BuildRequest.fromPartial({
        auth,
        source: {
            from: {
                $case: "file",
                value: {
                    dockerfilePath: "Dockerfile",
                    contextPath: ".",
                    dockerfileVersion: "typescript",
                    source: {
                        spec: {
                            $case: "git",
                            value: {
                                remoteUri: setting("KILN_TEST_REPOSITORY"),
                                targetMode: contentservice.CloneTargetMode.REMOTE_BRANCH,
                                cloneTaget: setting("KILN_TEST_BRANCH"),
                            },
                        },
                    },
                },
            },
        },
    });
}

test("a real build, from resolving to the subassembly", { timeout: 120_000 }, async () => {
    const address = setting("KILN_TEST_ADDRESS");
    const raw = new ImageBuilderClient(address, credentials.createInsecure());
    const client = new PromisifiedImageBuilderClient(raw);
    try {
        const base = ResolveBaseImageRequest.fromPartial({ ref: setting("KILN_TEST_BASE"), auth });
        assert.match((await client.resolveBaseImage(base)).ref, /@sha256:/);
        const wrong = client.resolveBaseImage(ResolveBaseImageRequest.fromPartial({ ref: "NOT A REFERENCE" }));
        await assert.rejects(wrong, (error: { code?: number }) => error.code === status.INVALID_ARGUMENT);

        const staged = await client.build(request());
        assert.equal(staged.actuallyNeedsBuild, true);
        const running = await client.listBuilds(ListBuildsRequest.fromPartial({}));
        assert.deepEqual(running.builds.map((build) => build.ref), [staged.ref]);
        assert.ok(Math.abs(running.builds[0].startedAt * 1000 - Date.now()) < 600_000);
        const info = await staged.logPromise;
        // Joined late: what was said before is there all the same.
        await sleep(200);
        let followed = "";
        for await (const piece of followLog(info)) {
            followed += piece.toString();
        }
        assert.equal((await staged.buildPromise).status, BuildStatus.done_success);
        let copied = "";
        await client.logs(LogsRequest.fromPartial({ buildRef: staged.ref }), (data) => {
            copied += data.content.toString();
            return "continue";
        });
        for (const log of [followed, copied]) {
            assert.match(log, /said at first[^]*said at last/);
        }
        const again = await client.build(request());
        assert.deepEqual([again.actuallyNeedsBuild, again.ref], [false, staged.ref]);
        const resolved = await client.resolveWorkspaceImage(ResolveWorkspaceImageRequest.fromPartial({ source: request().source, auth }));
        assert.deepEqual([resolved.ref, resolved.status], [staged.ref, BuildStatus.done_success]);
        await subassembly(address, staged.ref);
    } finally {
        raw.close();
    }
});

// The server is killed while both logs are read, and started again: tests/src/sdk.rs does when it finds the mark.
test("logs are read across a restart", { timeout: 120_000 }, async () => {
    const mark = setting("KILN_TEST_MARK");
    const raw = new ImageBuilderClient(setting("KILN_TEST_ADDRESS"), credentials.createInsecure());
    const client = new PromisifiedImageBuilderClient(raw);
    try {
        const staged = await client.build(request());
        const ways = [followLog(await staged.logPromise), client.logStream(LogsRequest.fromPartial({ buildId: staged.buildId }))];
        let waiting = ways.length;
        const read = async (log: AsyncIterable<Buffer>) => {
            let seen = "";
            let isWaiting = true;
            for await (const piece of log) {
                seen += piece.toString();
                if (isWaiting && seen.includes("said at first")) {
                    isWaiting = false;
                    waiting -= 1;
                    if (waiting === 0) {
                        await writeFile(mark, "");
                    }
                }
            }
            return seen;
        };
        const logs = await Promise.all(ways.map(read));
        assert.equal(logs[0], logs[1]);
        for (const said of ["said at first", "said at last"]) {
            assert.equal(logs[0].split(said).length, 2, logs[0]);
        }
        await assert.rejects(staged.buildPromise, (error: { code?: number }) => error.code === status.UNAVAILABLE);
        const again = await client.build(request());
        assert.equal(again.ref, staged.ref);
        assert.equal((await again.buildPromise).status, BuildStatus.done_success);
    } finally {
        raw.close();
    }
});

async function subassembly(address: string, image: string) {
    const client = new SubassemblyServiceClient(address, credentials.createInsecure());
    const ask = (method: "createSubassembly" | "getSubassembly") =>
        new Promise<SubassemblyStatus>((resolve, reject) =>
            client[method]({ ociReference: image }, (error, response) => (error ? reject(error) : resolve(response.status!))),
        );
    try {
        let standing = await ask("createSubassembly");
        while (standing.phase === SubassemblyPhase.SUBASSEMBLY_PHASE_CREATING) {
            await sleep(50);
            standing = await ask("getSubassembly");
        }
        assert.equal(standing.phase, SubassemblyPhase.SUBASSEMBLY_PHASE_AVAILABLE, standing.message);
        const manifest = JSON.parse(standing.manifest.toString());
        assert.equal(manifest.digest, standing.digest);
        const file = await fetch(standing.url);
        assert.equal((await file.arrayBuffer()).byteLength, manifest.size);
    } finally {
        client.close();
    }
}
