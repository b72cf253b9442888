// SPDX-License-Identifier: Apache-2.0

// Calls as promises, builds in two stages, logs as streams. Everything ends when its signal does; that a caller goes away never ends a
// build.

import type { CallOptions, ClientReadableStream, ServiceError } from "@grpc/grpc-js";
import { Metadata, status } from "@grpc/grpc-js";

import type {
    BuildRequest,
    BuildResponse,
    ImageBuilderClient,
    ListBuildsRequest,
    ListBuildsResponse,
    LogInfo,
    LogsRequest,
    LogsResponse,
    ResolveBaseImageRequest,
    ResolveBaseImageResponse,
    ResolveWorkspaceImageRequest,
    ResolveWorkspaceImageResponse,
} from "./generated/builder/imgbuilder";
import { BuildStatus } from "./generated/builder/imgbuilder";

/** What a call may be given beside its request. */
export interface Options {
    /** Ends the call, and the waiting for it. */
    signal?: AbortSignal;
    /** When the call has to have ended. */
    deadline?: Date;
    metadata?: Metadata;
}

/** A build that was asked for: what is known at once, and what is known later. */
export interface StagedBuildResponse {
    /** Name of the workspace image. */
    ref: string;
    /** Name of its base image. */
    baseRef: string;
    /** False when the image was there already. */
    actuallyNeedsBuild: boolean;
    /** The build; nothing when none is needed. */
    buildId?: string;
    /** The last message of the build; fails with a {@link BuildFailedError} when it did not end well. */
    buildPromise: Promise<BuildResponse>;
    /** Where the log is; fails when nothing was built, or when the build ended before it was known. */
    logPromise: Promise<LogInfo>;
}

/** A build that ended, and not well. */
export class BuildFailedError extends Error {
    /** @param response the last message of the build */
    constructor(readonly response: BuildResponse) {
        super(response.message);
        this.name = "BuildFailedError";
    }
}

/** The part of the generated client that is used, so that a test needs no more than it. */
export type Calls = Pick<ImageBuilderClient, "resolveBaseImage" | "resolveWorkspaceImage" | "build" | "logs" | "listBuilds">;

/** The Image Builder's calls as promises. */
export class PromisifiedImageBuilderClient {
    constructor(readonly client: Calls) {}

    /** Returns the digest form of an image reference. */
    resolveBaseImage(request: ResolveBaseImageRequest, options?: Options): Promise<ResolveBaseImageResponse> {
        return unary(options, (metadata, more, done) => this.client.resolveBaseImage(request, metadata, more, done));
    }

    /** Returns how the image of a source is called, and where it stands. */
    resolveWorkspaceImage(request: ResolveWorkspaceImageRequest, options?: Options): Promise<ResolveWorkspaceImageResponse> {
        return unary(options, (metadata, more, done) => this.client.resolveWorkspaceImage(request, metadata, more, done));
    }

    /** Returns the builds that run. */
    listBuilds(request: ListBuildsRequest, options?: Options): Promise<ListBuildsResponse> {
        return unary(options, (metadata, more, done) => this.client.listBuilds(request, metadata, more, done));
    }

    /** Asks for a build, and returns when the service has answered for the first time. */
    build(request: BuildRequest, options?: Options): Promise<StagedBuildResponse> {
        const stream = this.client.build(request, options?.metadata ?? new Metadata(), callOptions(options));
        return new Promise((resolve, reject) => new Following(stream, options?.signal, resolve, reject));
    }

    /** Passes the log of a build to `each`, from its first byte, until the build ends or `each` returns "stop". */
    async logs(request: LogsRequest, each: (data: LogsResponse) => "continue" | "stop", options?: Options & Patience): Promise<void> {
        for await (const piece of this.logStream(request, options)) {
            if (each({ content: piece }) === "stop") {
                return;
            }
        }
    }

    /**
     * Returns the log of a build, from its first byte, as a stream that ends when the build does. A build that is named by its id is gone on
     * with when the service comes back; under a reference there might be another build by then.
     */
    async *logStream(request: LogsRequest, options?: Options & Patience): AsyncGenerator<Buffer, void, void> {
        const tries = new Tries(options);
        let passedOn = 0;
        for (;;) {
            tries.begin();
            let known = passedOn;
            const stream = this.client.logs(request, options?.metadata ?? new Metadata(), callOptions(options));
            const stop = onAbort(options?.signal, () => stream.cancel());
            let reason: unknown;
            try {
                for await (const { content } of stream as AsyncIterable<LogsResponse>) {
                    tries.answer();
                    const piece = content.subarray(Math.min(known, content.length));
                    known -= content.length - piece.length;
                    if (piece.length > 0) {
                        tries.progress();
                        passedOn += piece.length;
                        yield piece;
                    }
                }
                return;
            } catch (error) {
                reason = error;
            } finally {
                stop();
                stream.cancel();
            }
            const isAway = (reason as Partial<ServiceError>).code === status.UNAVAILABLE;
            if (!isAway || request.buildId === "" || options?.signal?.aborted) {
                throw reason;
            }
            await tries.again(reason, options?.signal);
        }
    }
}

/** Reads a build's stream to its end and keeps the promises of the staged result. */
class Following {
    private last?: BuildResponse;
    private readonly build = deferred<BuildResponse>();
    private readonly log = deferred<LogInfo>();
    private readonly stop: () => void;

    constructor(
        stream: ClientReadableStream<BuildResponse>,
        signal: AbortSignal | undefined,
        private readonly first: (staged: StagedBuildResponse) => void,
        private readonly failed: (error: Error) => void,
    ) {
        this.stop = onAbort(signal, () => stream.cancel());
        stream.on("data", (response: BuildResponse) => this.take(response));
        stream.on("error", (error: Error) => this.end(error));
        stream.on("end", () => this.end());
    }

    private take(response: BuildResponse) {
        const isFirst = this.last === undefined;
        this.last = response;
        if (response.info?.logInfo?.url) {
            this.log.resolve(response.info.logInfo);
        }
        if (isFirst) {
            this.first({
                ref: response.ref,
                baseRef: response.baseRef,
                actuallyNeedsBuild: response.status !== BuildStatus.done_success,
                buildId: response.info?.buildId,
                buildPromise: this.build.promise,
                logPromise: this.log.promise,
            });
        }
    }

    private end(error?: Error) {
        this.stop();
        const reason = error ?? this.problem();
        if (reason === undefined && this.last !== undefined) {
            this.build.resolve(this.last);
            this.log.reject(new Error("nothing was built, so there is no log"));
            return;
        }
        const why = reason ?? new Error("the service ended the stream without a word");
        // Each matters only if nothing has come before; a promise that is settled stays as it is.
        this.failed(why);
        this.build.reject(why);
        this.log.reject(why);
    }

    private problem(): Error | undefined {
        switch (this.last?.status) {
            case undefined:
            case BuildStatus.done_success:
                return undefined;
            case BuildStatus.done_failure:
                return new BuildFailedError(this.last);
            default:
                return new Error("the stream ended while the build was running");
        }
    }
}

/** How long a log is asked for that brings nothing new. */
export interface Patience {
    /** How often it is asked for again; 10 when not given. */
    tries?: number;
    /** Milliseconds before the second try, 100 when not given; twice as many before each further one. */
    pauseMs?: number;
    /**
     * How many milliseconds a connection has to have held to count as one that brought something, 10 000 when not given: steps are silent for
     * long, and there are proxies that end what is silent.
     */
    heldMs?: number;
}

/** Where to read a log from, and when to stop. */
export interface FollowOptions extends Patience {
    /** First byte that is wanted. */
    offset?: number;
    signal?: AbortSignal;
}

/** Reads the log of a build over HTTP until the build ends, and goes on where a broken connection left it. */
export async function* followLog(info: LogInfo, options: FollowOptions = {}): AsyncGenerator<Buffer, void, void> {
    const tries = new Tries(options);
    let offset = options.offset ?? 0;
    for (;;) {
        tries.begin();
        let reason: unknown;
        try {
            for await (const piece of once(info, offset, tries, options.signal)) {
                offset += piece.length;
                tries.progress();
                yield piece;
            }
            return;
        } catch (error) {
            reason = error;
        }
        if (reason instanceof RefusedError || options.signal?.aborted) {
            throw reason;
        }
        await tries.again(reason, options.signal);
    }
}

/** Counts the tries that brought nothing. */
class Tries {
    private n = 0;
    private pause = 0;
    /** When the service answered the present try. */
    private answered?: number;

    constructor(private readonly patience: Patience = {}) {}

    /** Called before each try. */
    begin() {
        this.answered = undefined;
    }

    /** Called when the service has answered. */
    answer() {
        this.answered ??= performance.now();
    }

    /** Called when something came that was not known. */
    progress() {
        [this.n, this.pause] = [0, 0];
    }

    /** Waits for the next try; throws `reason` when there is none. */
    async again(reason: unknown, signal?: AbortSignal): Promise<void> {
        const { tries = 10, pauseMs = 100, heldMs = 10_000 } = this.patience;
        if (this.answered !== undefined && performance.now() - this.answered >= heldMs) {
            this.progress();
        }
        this.n += 1;
        if (this.n >= tries) {
            throw reason;
        }
        this.pause = Math.max(2 * this.pause, pauseMs);
        await sleep(this.pause, signal);
    }
}

/** A log that will not be given out, however often it is asked for. */
export class RefusedError extends Error {}

async function* once(info: LogInfo, offset: number, tries: Tries, signal?: AbortSignal): AsyncGenerator<Buffer, void, void> {
    const url = new URL(info.url);
    url.searchParams.set("offset", String(offset));
    const response = await fetch(url, { headers: info.headers, signal });
    if (!response.ok || response.body === null) {
        const text = `the log's server answered ${response.status}`;
        throw response.status >= 500 ? new Error(text) : new RefusedError(text);
    }
    tries.answer();
    for await (const piece of response.body as unknown as AsyncIterable<Uint8Array>) {
        yield Buffer.from(piece);
    }
}

type Done<T> = (error: ServiceError | null, response: T) => void;

function unary<T>(
    options: Options | undefined,
    call: (metadata: Metadata, more: CallOptions, done: Done<T>) => { cancel(): void },
): Promise<T> {
    return new Promise((resolve, reject) => {
        const started = call(options?.metadata ?? new Metadata(), callOptions(options), (error, response) => {
            stop();
            if (error) {
                reject(error);
            } else {
                resolve(response);
            }
        });
        const stop = onAbort(options?.signal, () => started.cancel());
    });
}

function callOptions(options: Options | undefined): CallOptions {
    return options?.deadline ? { deadline: options.deadline } : {};
}

/** Calls `then` once when the signal ends; returns what stops listening. */
function onAbort(signal: AbortSignal | undefined, then: () => void): () => void {
    if (signal === undefined) {
        return () => undefined;
    }
    if (signal.aborted) {
        // Not before the caller has what it listens to.
        queueMicrotask(then);
        return () => undefined;
    }
    signal.addEventListener("abort", then, { once: true });
    return () => signal.removeEventListener("abort", then);
}

function sleep(ms: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
        const timer = setTimeout(() => {
            stop();
            resolve();
        }, ms);
        const stop = onAbort(signal, () => {
            clearTimeout(timer);
            reject(signal?.reason);
        });
    });
}

function deferred<T>() {
    let resolve!: (value: T) => void;
    let reject!: (error: Error) => void;
    const promise = new Promise<T>((yes, no) => {
        [resolve, reject] = [yes, no];
    });
    // Not every caller waits for both promises; one that nobody waits for is no accident.
    promise.catch(() => undefined);
    return { promise, resolve, reject };
}
