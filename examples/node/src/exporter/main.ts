// node build/exporter/main.js: does exports until SIGTERM or SIGINT, like `python -m server.exporter`.
import { join } from "node:path";
import { credentials, options } from "../connection.js";
import { ExporterService } from "../contract.js";
import { directory, end, SettingError, target } from "../settings.js";
import { SnapshotArea } from "./area.js";
import { Exporter } from "./exporter.js";
import { token } from "./lease.js";
import { log } from "./log.js";

process.once("uncaughtException", end);
process.umask(0o077);
const unit = directory("CELLEXPORT_UNIT_DIR", "var/unit");
// Each call reads the token. Fail now if it is missing.
token();
const service = new ExporterService(target(), credentials(), options());
try {
  const area = new SnapshotArea(join(unit, "snapshots"));
  await area.prepare().catch((error: Error) => {
    throw new SettingError(`CELLEXPORT_UNIT_DIR: no snapshots can be written in ${unit} (${error.message}).`);
  });
  const exporter = new Exporter(service, join(unit, "cells"), area);
  for (const signal of ["SIGTERM", "SIGINT"] as const) {
    process.once(signal, () => {
      log("info", "shutting down");
      exporter.stop();
    });
  }
  log("info", "waiting for exports", { target: target() });
  await exporter.run();
} catch (error) {
  if (error instanceof SettingError) throw error;
  log("error", error instanceof Error ? error.message : String(error));
  process.exitCode = 2;
} finally {
  service.close();
}
