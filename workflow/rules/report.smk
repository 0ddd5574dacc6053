# Tables: the paper's rows beside ours.


localrules:
    table,
    all,


rule table:
    input:
        metrics=metrics_of_table,
        published=BASE / "workflow/reference/published.csv",
    output:
        csv="results/{table}.csv",
        md="results/{table}.md",
        tex="results/{table}.tex",
    log:
        "logs/table/{table}.log",
    benchmark:
        "logs/benchmarks/table/{table}.tsv"
    params:
        rows=rows_of_table,
        config=config_of_table,
        code=code_digest("make_table.py", "selfsup/tables"),
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("make_table.py"),
    message:
        "Make results/{wildcards.table}.csv"
    shell:
        "{params.python} {params.script} --table {wildcards.table} --config {params.config:q} --output {output.csv:q}"
        " 2>&1 | tee -i {log}"


# The parts of `make report`, which bundles them into results/report.html: Snakemake's own report, one file.
report: BASE / "workflow/report/workflow.rst"


localrules:
    curves,
    views,
    compute_table,
    table_page,
    compute_page,
    recipe_page,
    report,


rule curves:
    input:
        metrics_of_curves,
    output:
        svg=report(
            "results/figures/{experiment}.svg",
            caption=BASE / "workflow/report/curves.rst",
            category="2. Curves",
            labels={"experiment": "{experiment}"},
        ),
        png="results/figures/{experiment}.png",
    log:
        "logs/curves/{experiment}.log",
    benchmark:
        "logs/benchmarks/curves/{experiment}.tsv"
    params:
        code=code_digest("make_curves.py"),
        config=config_of_experiment,
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("make_curves.py"),
    message:
        "Draw the curves of {wildcards.experiment}"
    shell:
        "{params.python} {params.script} --experiment {wildcards.experiment} --config {params.config:q}"
        " --output {output.svg:q} 2>&1 | tee -i {log}"


rule views:
    input:
        data=dataset_of,
    output:
        report(
            "results/figures/views_{experiment}.png",
            caption=BASE / "workflow/report/views.rst",
            category="3. Views",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/views/{experiment}.log",
    benchmark:
        "logs/benchmarks/views/{experiment}.tsv"
    params:
        recipe=recipe_file,
        data=lambda wildcards, input: os.path.dirname(input.data),
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("show_views.py"),
    message:
        "Draw what {wildcards.experiment} is trained on"
    shell:
        "{params.python} {params.script} --recipe {params.recipe:q} --data {params.data:q} --output {output:q}"
        " 2>&1 | tee -i {log}"


rule compute_table:
    input:
        existing_ledgers,
    output:
        "results/compute.csv",
    log:
        "logs/compute_table.log",
    benchmark:
        "logs/benchmarks/compute_table.tsv"
    params:
        config=whole_config,
        python=PYTHON,
        script=script("compute_table.py"),
    message:
        "What the experiments have cost"
    shell:
        "{params.python} {params.script} --config {params.config:q} --output {output:q} 2>&1 | tee -i {log}"


rule table_page:
    input:
        "results/{table}.md",
    output:
        report(
            "results/report/{table}.html",
            caption=BASE / "workflow/report/table.rst",
            category="1. Results",
            labels={"table": "{table}"},
        ),
    log:
        "logs/table_page/{table}.log",
    benchmark:
        "logs/benchmarks/table_page/{table}.tsv"
    params:
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("report_page.py"),
    message:
        "The page of {wildcards.table}"
    shell:
        "{params.python} {params.script} --table {input:q} --output {output:q} 2>&1 | tee -i {log}"


rule compute_page:
    input:
        "results/compute.csv",
    output:
        report(
            "results/report/compute.html",
            caption=BASE / "workflow/report/compute.rst",
            category="4. Cost",
            labels={"ledger": "all experiments"},
        ),
    log:
        "logs/compute_page.log",
    benchmark:
        "logs/benchmarks/compute_page.tsv"
    params:
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("report_page.py"),
    message:
        "The page of the ledgers"
    shell:
        "{params.python} {params.script} --csv {input:q} --output {output:q} 2>&1 | tee -i {log}"


rule recipe_page:
    input:
        metrics_of_experiment,
    output:
        report(
            "results/report/{experiment}_recipe.html",
            caption=BASE / "workflow/report/recipe.rst",
            category="5. Recipes",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/recipe_page/{experiment}.log",
    benchmark:
        "logs/benchmarks/recipe_page/{experiment}.tsv"
    params:
        config=config_of_experiment,
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("report_page.py"),
    message:
        "Where {wildcards.experiment} comes from"
    shell:
        "{params.python} {params.script} --experiment {wildcards.experiment} --config {params.config:q}"
        " --output {output:q} 2>&1 | tee -i {log}"


rule report:
    input:
        parts_of_report,
    log:
        "logs/report.log",
    benchmark:
        "logs/benchmarks/report.tsv"
    params:
        parts=lambda wildcards, input: len(input),
    message:
        "The parts of the report are there"
    shell:
        "echo The report has {params.parts} parts > {log}"
