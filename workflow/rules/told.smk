# How the commands of jobs get what they need to know.

from snakemake_interface_executor_plugins.registry import ExecutorPluginRegistry

PYTHON = commands.near(sys.executable, Path.cwd())


def script(name):
    return commands.near(SCRIPTS / name, Path.cwd())


def told_file(name, content):
    return commands.told_file(name, content, write=not workflow.dryrun)


# These functions make a rule's parameter `job`: a mapping with the pieces of its command, such as {params.job[start]}.
# They have `input` among their arguments, so Snakemake does not track them: only a parameter of its own can be a reason
# to run a job again. words: further pieces, each a function of wildcards and input.
def local_job(name, /, **words):
    """For jobs that run a script on the machine where Snakemake runs."""

    @ends_on_error
    def job(wildcards, input, output):
        start = f"{PYTHON} {script(name)}"
        folder = os.path.dirname(output[0]) if output else ""
        return {"start": start, "folder": folder, **{key: word(wildcards, input) for key, word in words.items()}}

    return job


def queued_job(name, /, **words):
    """For jobs that run a script, as a Slurm job if Slurm is used."""
    local = local_job(name, **words)

    def job(wildcards, input, output, resources, threads):
        return {**local(wildcards, input, output), "sbatch": sbatch_text(resources, threads)}

    return job


def device_job(name, stage, /, **words):
    """For jobs that run a script with one process for each device of a stage."""
    queued = queued_job(name, **words)

    @ends_on_error
    def job(wildcards, input, output, resources, threads):
        experiment, told = experiment_of(wildcards), queued(wildcards, input, output, resources, threads)
        if not in_slurm() and not workflow.dryrun:
            commands.refuse_several_nodes(experiment, stage)
        start = jobs.launcher(experiment.compute[stage], told["start"], in_slurm=in_slurm())
        dataset = evaluation_of(wildcards).dataset if stage == "evaluate" else experiment.dataset
        machine = commands.machine_words(CONFIG, experiment, stage, dataset, in_slurm=in_slurm())
        return {**told, "start": start, "machine": machine, "tee": commands.TEE}

    return job


def sbatch_text(resources, threads):
    """What -n adds to a job's message: the options that sbatch would get."""
    if not (workflow.dryrun and TYPED.executor == "slurm"):
        return ""
    plugin = ExecutorPluginRegistry().get_plugin(TYPED.executor)
    return f"\n    {jobs.sbatch(resources, threads, plugin.get_settings(TYPED))}"
