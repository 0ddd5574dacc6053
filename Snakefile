# The workflow is workflow/Snakefile; `snakemake` finds it in this folder by this file.


include: "workflow/Snakefile"


# What is made where nothing is asked for: of an included file Snakemake does not take it.
workflow.default_target = "all"
