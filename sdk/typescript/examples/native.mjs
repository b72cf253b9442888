// SPDX-License-Identifier: Apache-2.0

// Builds the Dockerfile of a git repository with kiln.v1, shows what happens while it does, and tells why when it fails.
//
//   node examples/native.mjs 127.0.0.1:8080 https://git.example.com/team/app.git main

import { promisify } from "node:util";
import { setTimeout as pause } from "node:timers/promises";
import { credentials, status } from "@grpc/grpc-js";
import api from "@kiln/image-builder-api";

const { kiln, contentservice } = api;
const [address, repository, branch] = process.argv.slice(2);
const client = new kiln.KilnClient(address, credentials.createInsecure());
const startBuild = promisify(client.startBuild.bind(client));
const getBuild = promisify(client.getBuild.bind(client));

// Prints the journal of a build until its end. A stream that breaks is gone on with where it was.
async function watch(buildId) {
    for (let skip = 0; ; ) {
        try {
            for await (const { body } of client.watchBuild({ buildId, skip })) {
                skip += 1;
                process.stderr.write(body.$case === "output" ? body.value.data : body.value + "\n");
            }
            return;
        } catch (error) {
            if (error.code !== status.UNAVAILABLE) throw error;
            await pause(1000);
        }
    }
}

const { build } = await startBuild(
    kiln.StartBuildRequest.fromPartial({
        triggeredBy: "the example",
        requestLabels: { example: "native" },
        auth: { mode: { $case: "total", value: { allowAll: true } } },
        outputs: [{ kind: { $case: "keep", value: "example:latest" } }],
        files: {
            from: {
                $case: "workspace",
                value: {
                    spec: {
                        $case: "git",
                        value: {
                            remoteUri: repository,
                            targetMode: contentservice.CloneTargetMode.REMOTE_BRANCH,
                            cloneTaget: branch,
                        },
                    },
                },
            },
        },
    }),
);
await watch(build.buildId);
const ended = await getBuild({ buildId: build.buildId });
for (const step of ended.detail.steps) {
    console.error(`${step.name} took ${step.durationMs ?? 0} ms`);
}
client.close();
const { ref, digest, failure } = ended.build;
if (failure) {
    console.error(`${kiln.failureReasonToJSON(failure.reason)}: ${failure.message}`);
    process.exitCode = 1;
} else {
    console.log(ref, digest);
}
