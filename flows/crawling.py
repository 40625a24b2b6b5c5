"""The sub-flow that lists the candidates: crawl."""

from collections import Counter
from itertools import chain
from typing import Any

from lvd.flows import generations
from lvd.flows.collected import Gathered, Part, Sources
from lvd.flows.group import Call, call, joint_call
from lvd.flows.run import Run, Work, raise_first
from lvd.flows.stage import stage
from lvd.infra.committing import commit
from lvd.infra.errors import InputError
from lvd.infra.shards import ShardRef, StageDir
from lvd.tasks import crawl as crawl_stage
from lvd.tasks import links as links_stage
from lvd.tasks.sources import Partition, partitions
from lvd.tasks.url_rules import rules_digest


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
    result, seen, before = [], Counter(), generations.seen(recipe)
    known = [*chain(*before.nights), *before.begun]
    for where, role, name, source in asked:
        if source is None:
            raise InputError(f"{where} must have a source to be run: give its kind and path")
        try:
            found = partitions(source, known if role == "pool" else ())
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
    own = parts.pop(("pool", "pool"))
    if not run.looking:
        generations.begin(run.recipe, [part.partition for part in own])
    every = [*own, *(part for found in parts.values() for part in found)]
    choose_links(run, [part for part in every if part.partition.is_linked], digest)
    list_images(run, [part for part in every if not part.partition.is_linked])
    others = [Gathered(role=role, name=name, parts=tuple(found)) for (role, name), found in parts.items()]
    return Sources(
        pool=generations.ordered(run.recipe, own),
        benchmarks=tuple(g for g in others if g.role == "benchmark"),
        curated=tuple(g for g in others if g.role == "curated"),
    )


def user_agent(run: Run) -> str:
    return run.recipe.download.user_agent


def list_images(run: Run, parts: list[Part]) -> None:
    """The manifests of folders, tars and datasets."""
    config = run.recipe.crawl
    new = {part.manifest.directory: part for part in parts}
    new = {directory: part for directory, part in new.items() if run.needs(part.manifest)}
    calls = (call(crawl_stage.listed_shards, part.manifest, part.partition, config) for part in new.values())
    outcomes = list(run.outcomes("crawl", calls, len(new)))
    for outcome in outcomes:
        if outcome.error is None:
            close(new[outcome.call.arguments[0].directory], outcome.value, config.model_dump(mode="json"))
    raise_first("crawl", [outcome for outcome in outcomes if outcome.error], len(new))


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

    run.complete("crawl", [reading(part.partition, target) for part, target, _, _ in ways])
    run.complete("crawl", [judging(found, target, config, agent, digest) for _, found, target, _ in ways])
    for _, _, found, target in ways:
        if run.needs(target):
            count = crawl_stage.choose.submit(found.shards(), target, config).result()
            commit(target, count, config={"max_per_domain": limit}, inputs={"verdicts": found.directory})
    run.complete("crawl", [writing(part, found, config) for part, *found in ways])


def reading(partition: Partition, target: StageDir) -> Work:
    def computing(ref: ShardRef) -> Call:
        return call(links_stage.links_shard, partition, ref)

    return Work(target=target, count=len(partition.files), call=computing, inputs=named(partition))


def judging(links: StageDir, target: StageDir, config: crawl_stage.Config, agent: str, digest: str) -> Work:
    refs = links.shards()

    def computing(ref: ShardRef) -> Call:
        return call(crawl_stage.verdicts_shard, refs[ref.index], ref, config, agent, digest)

    said = {"rules": config.rules.model_dump(mode="json"), "opt_out": config.opt_out, "digest": digest}
    return Work(target=target, count=len(refs), call=computing, config=said, inputs={"links": links.directory})


def writing(part: Part, found: list[StageDir], config: crawl_stage.Config) -> Work:
    """The manifest's shards."""
    links, verdicts, choices = (directory.shards() for directory in found)
    count = max(1, -(-sum(ref.rows for ref in links) // config.rows_per_shard))
    options = {"links": links, "verdicts": verdicts, "choices": choices, "config": config}

    def computing(ref: ShardRef) -> Call:
        return joint_call(crawl_stage.manifest_shards, ref, options)

    said = config.model_dump(mode="json")
    return Work(target=part.manifest, count=count, call=computing, config=said, inputs=named(part.partition))


def close(part: Part, count: int, config: dict[str, Any]) -> None:
    commit(part.manifest, count, config=config, inputs=named(part.partition))


def named(partition: Partition) -> dict[str, Any]:
    return {"files": list(partition.files)[:100], "digest": partition.digest}
