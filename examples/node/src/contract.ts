// The contract, loaded from the repository's .proto files. Only its types are generated.
import { fileURLToPath } from "node:url";
import * as grpc from "@grpc/grpc-js";
import * as loader from "@grpc/proto-loader";
import type { ProtoGrpcType as CellExportTypes } from "./generated/cell_export.js";
import type { ProtoGrpcType as ExporterTypes } from "./generated/exporter.js";
import type { ProtoGrpcType as ErrorTypes } from "./generated/google_rpc.js";

/** The directory of the contract. */
export const PROTO = fileURLToPath(new URL("../../../proto/", import.meta.url));

const definition = loader.loadSync(
  ["cellexport/v1/cell_export.proto", "cellexport/v1/exporter.proto", "google_rpc.proto"],
  {
    includeDirs: [PROTO, fileURLToPath(new URL("../", import.meta.url))],
    // The same options as in the script `types` of package.json. An int64 is a string, as a JavaScript number has 53
    // bits.
    longs: String,
    enums: String,
    defaults: true,
    oneofs: true,
  },
);

const loaded = grpc.loadPackageDefinition(definition) as unknown as CellExportTypes & ExporterTypes & ErrorTypes;

export const { CellExportService, ExporterService } = loaded.cellexport.v1;
export const { Status, ErrorInfo, RetryInfo } = loaded.google.rpc;
