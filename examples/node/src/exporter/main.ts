// node build/exporter/main.js: does exports until SIGTERM or SIGINT, like `python -m server.exporter`.
import { join } from "node:path";
import { credentials, options, target } from "../connection.js";
import { ExporterService } from "../contract.js";
import { SnapshotArea } from "./area.js";
import { Exporter } from "./exporter.js";
import { log } from "./log.js";

process.umask(0o077);
const unit = process.env.CELLEXPORT_UNIT_DIR || "var/unit";
const service = new ExporterService(target(), credentials(), options());
try {
  const area = new SnapshotArea(join(unit, "snapshots"));
  await area.prepare();
  const exporter = new Exporter(service, join(unit, "cells"), area);
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.once(signal, () => {
      log("info", "ending");
      exporter.stop();
    });
  }
  log("info", "waiting for exports", { target: target() });
  await exporter.run();
} catch (error) {
  log("error", error instanceof Error ? error.message : String(error));
  process.exitCode = 2;
} finally {
  service.close();
}
