# Wiring only: what is run stands in config.yaml, how it is trained in workflow/recipes/, each kind of job in workflow/rules/.
#
#   snakemake --cores all results/demo.csv                    minutes on a laptop
#   snakemake --profile profiles/slurm results/table1.csv     the full reproduction, on a Slurm cluster
#   snakemake -n ...                                          the plan

from snakemake.utils import min_version

min_version("9.10")


include: "workflow/rules/reading.smk"


configfile: "config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/told.smk"
include: "workflow/rules/params.smk"
include: "workflow/rules/settled.smk"
include: "workflow/rules/inputs.smk"
include: "workflow/rules/inputs_of_results.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/pretrain.smk"
include: "workflow/rules/encoders.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/plan.smk"


rule all:
    default_target: True
    input:
        "results/table1.csv",


include: "workflow/rules/targets.smk"
include: "workflow/rules/ending.smk"
