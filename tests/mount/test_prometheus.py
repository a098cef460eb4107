"""A real Prometheus scrapes `vconfs host --metrics`."""

from __future__ import annotations

import json
import subprocess
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path

import pytest
import trio

from tests.faults.programs import open_both
from tests.support import needs
from tests.support.fetching import ROOT, fetch
from tests.support.threads import in_thread
from tests.unit.host.test_metrics import free_port

CACHE = ROOT / ".cache" / "prometheus"
CONFIG = """
scrape_configs:
  - job_name: vconfs
    scrape_interval: 200ms
    scrape_timeout: 200ms
    static_configs:
      - targets: ["127.0.0.1:{service}"]
"""


@cache
def problem() -> str:
    """Fetch Prometheus if it is not there. Return what goes wrong."""
    return "" if (CACHE / "prometheus").exists() else fetch("prometheus", CACHE)


@asynccontextmanager
async def prometheus(folder: Path, service: int) -> AsyncIterator[str]:
    """Run a Prometheus that scrapes this TCP port; yield its address."""
    if why := await in_thread(problem):
        needs.cannot_run(why)
    config, own = folder / "prometheus.yml", free_port()
    config.write_text(CONFIG.format(service=service))
    process = await trio.lowlevel.open_process(
        [
            str(CACHE / "prometheus"),
            f"--config.file={config}",
            f"--storage.tsdb.path={folder}/tsdb",
            f"--web.listen-address=127.0.0.1:{own}",
        ],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield f"http://127.0.0.1:{own}"
    finally:
        process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()


def asked(address: str, query: str) -> dict[tuple[str, str], float]:
    """Return the values that it has for a query, by guest and name of the port; none at first."""
    url = f"{address}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=5) as response:
            results = json.load(response)["data"]["result"]
    except OSError:
        return {}
    return {
        (result["metric"]["guest"], result["metric"]["name"]): float(result["value"][1])
        for result in results
    }


@pytest.mark.limit(60)
async def test_prometheus_has_the_bytes_of_each_port(tmp_path: Path) -> None:
    service = free_port()
    async with open_both(tmp_path, f"stream:unix:{tmp_path}/web1") as both:
        await both.host("log=null", "chat=echo", words=["--metrics", f"127.0.0.1:{service}"])
        await both.mount()
        await both.until_connected()
        both.file().write_bytes(b"twelve bytes")
        async with prometheus(tmp_path, service) as address:
            found: dict[tuple[str, str], float] = {}
            while found.get(("web1", "log")) != 12:
                found = await in_thread(lambda: asked(address, "vconfs_port_in_bytes_total"))
                await trio.sleep(0.1)
            assert found == {("web1", "log"): 12, ("web1", "chat"): 0}
