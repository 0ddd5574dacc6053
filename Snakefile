# The workflow is workflow/Snakefile; `snakemake` finds it in this folder by this file.


include: "workflow/Snakefile"
