// SPDX-License-Identifier: Apache-2.0

// Builds the Dockerfile of a git repository and shows its log while it does.
//
//   node examples/build.mjs 127.0.0.1:8080 https://git.example.com/team/app.git main

import { credentials } from "@grpc/grpc-js";
import api from "@kiln/image-builder-api";

const [address, repository, branch] = process.argv.slice(2);
const client = new api.ImageBuilderClient(address, credentials.createInsecure());
const builder = new api.PromisifiedImageBuilderClient(client);

const staged = await builder.build(
    api.BuildRequest.fromPartial({
        triggeredBy: "the example",
        auth: { mode: { $case: "total", value: { allowAll: true } } },
        source: {
            from: {
                $case: "file",
                value: {
                    dockerfilePath: "Dockerfile",
                    contextPath: ".",
                    source: {
                        spec: {
                            $case: "git",
                            value: {
                                remoteUri: repository,
                                targetMode: api.contentservice.CloneTargetMode.REMOTE_BRANCH,
                                cloneTaget: branch,
                            },
                        },
                    },
                },
            },
        },
    }),
);
if (staged.actuallyNeedsBuild) {
    for await (const piece of api.followLog(await staged.logPromise)) {
        process.stderr.write(piece);
    }
}
await staged.buildPromise;
console.log(staged.ref);
client.close();
