# Says what a target that does not exist may have meant, before Snakemake says only that nothing produces it.

from selfsup.targets import unknown_target


def check_targets(targets):
    """End with one line about the first target that is neither a rule, nor a rule's file, nor an existing file."""
    for target in targets:
        path = os.path.relpath(target) if not os.path.isabs(target) else target
        known = target in {one.name for one in workflow.rules} or os.path.exists(path)
        if not known and not any(one.is_producer(path) for one in workflow.rules):
            names = [one.name for one in workflow.rules if not one.has_wildcards()]
            files = [str(file) for one in workflow.rules for file in one.products()]
            give_up(unknown_target(target, [*names, *files], CONFIG))


if not workflow.remote_exec and not IS_MODULE:
    check_targets(TYPED.targets)
