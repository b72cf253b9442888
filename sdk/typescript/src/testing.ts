// SPDX-License-Identifier: Apache-2.0

// A client that says what a test tells it to, without any service: `import { scripted } from "@kiln/image-builder-api/lib/testing"`.

import { EventEmitter } from "node:events";
import { Readable } from "node:stream";

import type { ClientReadableStream } from "@grpc/grpc-js";

import type { BuildResponse, ListBuildsResponse, LogsResponse, ResolveBaseImageResponse, ResolveWorkspaceImageResponse } from "./generated/builder/imgbuilder";
import type { Calls } from "./sugar";

/** What each call answers. A call that is not named fails. */
export interface Script {
    resolveBaseImage?: ResolveBaseImageResponse | Error;
    resolveWorkspaceImage?: ResolveWorkspaceImageResponse | Error;
    listBuilds?: ListBuildsResponse | Error;
    /** Messages, in their order; an error ends the stream, "wait" keeps it open until it is cancelled. */
    build?: (BuildResponse | Error | "wait")[];
    logs?: (LogsResponse | Error | "wait")[];
}

/** Returns a client that follows the script. */
export function scripted(script: Script): Calls {
    const unary = <T>(answer: T | Error | undefined) =>
        ((...args: unknown[]) => {
            const done = args[args.length - 1] as (error: Error | null, response?: T) => void;
            const call = Object.assign(new EventEmitter(), { cancel: () => undefined });
            setImmediate(() => {
                if (answer === undefined) {
                    done(new Error("the test does not expect this call"));
                } else if (answer instanceof Error) {
                    done(answer);
                } else {
                    done(null, answer);
                }
            });
            return call;
        }) as never;
    const stream = <T>(items: (T | Error | "wait")[] | undefined) =>
        (() => play(items ?? [new Error("the test does not expect this call")])) as never;
    return {
        resolveBaseImage: unary(script.resolveBaseImage),
        resolveWorkspaceImage: unary(script.resolveWorkspaceImage),
        listBuilds: unary(script.listBuilds),
        build: stream(script.build),
        logs: stream(script.logs),
    };
}

function play<T>(items: (T | Error | "wait")[]): ClientReadableStream<T> {
    const left = [...items];
    const stream = new Readable({
        objectMode: true,
        read() {
            const item = left.shift();
            if (item === undefined) {
                this.push(null);
            } else if (item instanceof Error) {
                this.destroy(item);
            } else if (item !== "wait") {
                this.push(item);
            }
        },
    });
    return Object.assign(stream, {
        cancel: () => {
            if (!stream.destroyed && !stream.readableEnded) {
                stream.destroy(new Error("cancelled"));
            }
        },
    }) as unknown as ClientReadableStream<T>;
}
