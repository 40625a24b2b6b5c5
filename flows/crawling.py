"""The sub-flow that lists the candidates: crawl."""

from collections import Counter
from typing import Any

from lvd.flows.collected import Gathered, Part, Sources
from lvd.flows.run import Run, Work
from lvd.flows.stage import stage
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir, commit
from lvd.tasks import crawl as crawl_stage
from lvd.tasks import links as links_stage
from lvd.tasks.sources import Partition, partitions
from lvd.tasks.url_rules import rules_digest

SHARDS_PER_TASK = 64  # of a manifest: some seconds of work


def listed(run: Run) -> list[tuple[str, str, str, list[Partition]]]:
    """(field of the recipe, role, name, partitions) of every source, the pool's first.

    Raises InputError naming the field whose source is not there.
    """
    recipe = run.recipe
    if not recipe.pool:
        raise InputError("recipe.pool must name at least one source, was empty: give a kind and a path")
    asked = [(f"recipe.pool[{i}]", "pool", "pool", source) for i, source in enumerate(recipe.pool)]
    asked += [(f"recipe.benchmarks[{i}]", "benchmark", c.name, c.source) for i, c in enumerate(recipe.benchmarks)]
    asked += [(f"recipe.curated[{i}]", "curated", c.name, c.source) for i, c in enumerate(recipe.curated)]
    result, seen = [], Counter()
    for where, role, name, source in asked:
        if source is None:
            raise InputError(f"{where} must have a source to be run: give its kind and path")
        try:
            found = partitions(source)
        except InputError as error:
            raise InputError(f"{where}.{error}") from error
        result.append((where, role, name, [told_apart(partition, role, seen) for partition in found]))
    return result


def told_apart(partition: Partition, role: str, seen: Counter[tuple[str, str]]) -> Partition:
    """The partition with the number of those of equal content that came before it in the same role."""
    seen[role, partition.digest] += 1
    return partition.model_copy(update={"repeat": seen[role, partition.digest] - 1})


@stage
def crawl(run: Run) -> Sources:
    """The manifests: every candidate of every source, listed once."""
    config, digest, parts = run.recipe.crawl, rules_digest(run.recipe.crawl.rules), {}
    for _, role, name, found in listed(run):
        for partition in found:
            decided = [config.model_dump(mode="json"), digest, user_agent(run)] if partition.is_linked else []
            target = run.target(
                *("crawl", crawl_stage.VERSION, config.rows_per_shard, decided, partition.digest, partition.repeat)
            )
            parts.setdefault((role, name), []).append(Part(partition=partition, manifest=target))
    every = [part for found in parts.values() for part in found]
    choose_links(run, [part for part in every if part.partition.is_linked], digest)
    list_images(run, [part for part in every if not part.partition.is_linked])
    gathered = [Gathered(role=role, name=name, parts=tuple(found)) for (role, name), found in parts.items()]
    pool, *others = gathered
    return Sources(
        pool=pool,
        benchmarks=tuple(g for g in others if g.role == "benchmark"),
        curated=tuple(g for g in others if g.role == "curated"),
    )


def user_agent(run: Run) -> str:
    return run.recipe.download.user_agent


def list_images(run: Run, parts: list[Part]) -> None:
    """The manifests of folders, tars and datasets."""
    config, started = run.recipe.crawl, {}
    for part in parts:
        if part.manifest.directory not in started and run.needs(part.manifest):
            future = crawl_stage.listed_shards.submit(part.manifest, part.partition, config)
            started[part.manifest.directory] = part, future
    for part, future in started.values():
        close(part, future.result(), config.model_dump(mode="json"))


def choose_links(run: Run, parts: list[Part], digest: str) -> None:
    """The manifests of what lists and archives name: read, judged file by file, chosen, written."""
    config, agent = run.recipe.crawl, user_agent(run)
    links = [run.target("links", links_stage.VERSION, part.partition.digest) for part in parts]
    judged = [config.rules.model_dump(exclude={"max_per_domain"}), config.opt_out, digest, agent]
    verdicts = [run.target("verdicts", crawl_stage.VERSION, judged, target.directory) for target in links]
    limit = config.rules.max_per_domain
    choices = [run.target("choices", crawl_stage.VERSION, limit, target.directory) for target in verdicts]
    new = {p.manifest.directory: i for i, p in reversed([*enumerate(parts)]) if run.needs(p.manifest, 0)}
    ways = [(parts[i], links[i], verdicts[i], choices[i]) for i in sorted(new.values())]

    run.complete("links", [reading(part.partition, target) for part, target, _, _ in ways])
    run.complete("verdicts", [judging(found, target, config, agent, digest) for _, found, target, _ in ways])
    for _, _, found, target in ways:
        if run.needs(target):
            count = crawl_stage.choose.submit(found.shards(), target, config).result()
            commit(target, count, config={"max_per_domain": limit}, inputs={"verdicts": found.directory})
    for part, *found in ways:
        run.needs(part.manifest)
        close(part, write_manifest(part, found, config), config.model_dump(mode="json"))


def reading(partition: Partition, target: StageDir) -> Work:
    def submit(ref: ShardRef) -> Any:
        return links_stage.links_shard.submit(partition, ref)

    return Work(target=target, count=len(partition.files), submit=submit, inputs=named(partition))


def judging(links: StageDir, target: StageDir, config: crawl_stage.Config, agent: str, digest: str) -> Work:
    refs = links.shards()

    def submit(ref: ShardRef) -> Any:
        return crawl_stage.verdicts_shard.submit(refs[ref.index], ref, config, agent, digest)

    said = {"rules": config.rules.model_dump(mode="json"), "opt_out": config.opt_out, "digest": digest}
    return Work(target=target, count=len(refs), submit=submit, config=said, inputs={"links": links.directory})


def write_manifest(part: Part, found: list[StageDir], config: crawl_stage.Config) -> int:
    """Writes the missing shards, a group to a task; returns how many shards there are."""
    links, verdicts, choices = (directory.shards() for directory in found)
    count = max(1, -(-sum(ref.rows for ref in links) // config.rows_per_shard))
    groups = [part.manifest.planned(count)[i : i + SHARDS_PER_TASK] for i in range(0, count, SHARDS_PER_TASK)]
    futures = [crawl_stage.manifest_shards.submit(group, links, verdicts, choices, config) for group in groups]
    for future in futures:
        future.result()
    return count


def close(part: Part, count: int, config: dict[str, Any]) -> None:
    commit(part.manifest, count, config=config, inputs=named(part.partition))


def named(partition: Partition) -> dict[str, Any]:
    return {"files": list(partition.files)[:100], "digest": partition.digest}
