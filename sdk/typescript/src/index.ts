// SPDX-License-Identifier: Apache-2.0

// What the package offers: the generated messages and clients, and the wrapper around them.

export * from "./generated/builder/imgbuilder";
export {
    CreateSubassemblyRequest,
    CreateSubassemblyResponse,
    GetSubassemblyRequest,
    GetSubassemblyResponse,
    SubassemblyPhase,
    SubassemblyServiceClient,
    SubassemblyServiceService,
    SubassemblyStatus,
} from "./generated/builder/subassembly";
export * as contentservice from "./generated/content-service-api/initializer";
export * as kiln from "./generated/kiln/v1/kiln";
export * from "./sugar";
