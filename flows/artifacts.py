"""What every stage leaves on Prefect's screen: a table of counts and a link to its output."""

from typing import Any

from lvd.flows.run import Run
from lvd.flows.server import dispensable
from lvd.infra.shards import StageDir
from lvd.tasks.wording import size


def leave_artifacts(run: Run, stage: str, before: dict[str, int]) -> None:
    """A table and a link for every directory that the stage entered in the run's account since `before`."""
    from prefect.artifacts import create_link_artifact, create_table_artifact

    key = stage.replace("_", "-")
    directories = [d for name, found in run.directories.items() for d in found[before.get(name, 0) :]]
    rows = [counts(run, directory) for directory in directories]
    with dispensable(f"the table of {stage}"):
        create_table_artifact(key=key, table=rows, description=f"Rows and reasons of {stage}")
        for directory in directories[:1]:
            create_link_artifact(key=f"{key}-output", link=link(run.storage.uri(directory)), link_text=directory)


def leave_report(uri: str) -> None:
    """A link from the run's page to the report of what it published."""
    from prefect.artifacts import create_link_artifact

    create_link_artifact(key="report", link=uri, link_text=uri.rsplit("/", 2)[-2], description="The report")


def counts(run: Run, directory: str) -> dict[str, Any]:
    """One row of the table: rows in and out, reasons, and what it cost."""
    stage, name = directory.rsplit("/", 1)
    account = StageDir(root=run.storage.root, stage=stage, fingerprint=name).account()
    reasons, cost = account["notes"].get("reasons") or account["reasons"], account.get("cost", {})
    return {
        "output": directory,
        "rows in": account["rows_in"],
        "rows": account["rows"],
        "reasons": ", ".join(f"{reason} {count}" for reason, count in reasons.items()),
        "seconds": account["seconds"],
        "images/s": round(account["rows_in"] / account["seconds"], 1) if account["seconds"] else None,
        "GPU hours": round(cost["gpu_seconds"] / 3600, 3) if "gpu_seconds" in cost else "–",
        "read": size(cost["read_bytes"]) if "read_bytes" in cost else "–",
        "written": size(cost["written_bytes"]) if "written_bytes" in cost else "–",
    }


def link(uri: str) -> str:
    return uri if "://" in uri else f"file://{uri}"
