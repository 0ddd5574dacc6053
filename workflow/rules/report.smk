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
        code=commands.code_digest(SCRIPTS, ["make_table.py", "selfsup/tables"]),
        job=local_job("make_table.py", config=config_of_table),
    message:
        "Make results/{wildcards.table}.csv"
    shell:
        "{params.job[start]} --table {wildcards.table} --config {params.job[config]:q} --output {output.csv:q}"
        " > {log} 2>&1"


# The parts of `make report`: results/report.html, which opens on the result, and what Snakemake's own report bundles.
report: "../report/workflow.rst"


localrules:
    curves,
    comparison,
    views,
    compute_table,
    evaluations_table,
    table_page,
    compute_page,
    recipe_page,
    landing_page,
    publish,
    report,


rule curves:
    input:
        metrics_of_curves,
    output:
        svg=report(
            "results/figures/{experiment}.svg",
            caption="../report/curves.rst",
            category="2. Curves",
            labels={"experiment": "{experiment}"},
        ),
        png="results/figures/{experiment}.png",
    log:
        "logs/curves/{experiment}.log",
    benchmark:
        "logs/benchmarks/curves/{experiment}.tsv"
    params:
        code=commands.code_digest(SCRIPTS, ["make_curves.py"]),
        job=local_job("make_curves.py", config=config_of_experiment),
    message:
        "Draw the curves of {wildcards.experiment}"
    shell:
        "{params.job[start]} --experiment {wildcards.experiment} --config {params.job[config]:q}"
        " --output {output.svg:q} 2>&1 | tee -i {log}"


# The experiments of a table in one figure.
rule comparison:
    input:
        metrics_of_table,
    output:
        svg="results/figures/compare_{table}.svg",
        png="results/figures/compare_{table}.png",
    log:
        "logs/comparison/{table}.log",
    benchmark:
        "logs/benchmarks/comparison/{table}.tsv"
    params:
        job=local_job("make_curves.py", config=config_of_table, experiments=experiments_of_table),
    message:
        "Draw the curves of {wildcards.table} in one figure"
    shell:
        "{params.job[start]} --experiment {params.job[experiments]} --config {params.job[config]:q}"
        " --output {output.svg:q} 2>&1 | tee -i {log}"


rule views:
    input:
        data=dataset_of,
    output:
        report(
            "results/figures/views_{experiment}.png",
            caption="../report/views.rst",
            category="3. Views",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/views/{experiment}.log",
    benchmark:
        "logs/benchmarks/views/{experiment}.tsv"
    params:
        job=local_job("show_views.py", recipe=recipe_file, data=data_folder),
    message:
        "Draw the views that {wildcards.experiment} is trained on"
    shell:
        "{params.job[start]} --recipe {params.job[recipe]:q} --data {params.job[data]:q} --output {output:q}"
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
        job=local_job("compute_table.py", config=whole_config),
    message:
        "Add up what the experiments have cost"
    shell:
        "{params.job[start]} --config {params.job[config]:q} --output {output:q} 2>&1 | tee -i {log}"


rule evaluations_table:
    input:
        finished_metrics,
    output:
        "results/evaluations.csv",
    log:
        "logs/evaluations_table.log",
    benchmark:
        "logs/benchmarks/evaluations_table.tsv"
    params:
        job=local_job("evaluations_table.py", config=whole_config),
    message:
        "List all finished evaluations in one table"
    shell:
        "{params.job[start]} --config {params.job[config]:q} --output {output:q} 2>&1 | tee -i {log}"


rule table_page:
    input:
        "results/{table}.md",
    output:
        report(
            "results/report/{table}.html",
            caption="../report/table.rst",
            category="1. Results",
            labels={"table": "{table}"},
        ),
    log:
        "logs/table_page/{table}.log",
    benchmark:
        "logs/benchmarks/table_page/{table}.tsv"
    params:
        job=local_job("report_page.py"),
    message:
        "Make the report's page of {wildcards.table}"
    shell:
        "{params.job[start]} --table {input:q} --output {output:q} 2>&1 | tee -i {log}"


rule compute_page:
    input:
        "results/compute.csv",
    output:
        report(
            "results/report/compute.html",
            caption="../report/compute.rst",
            category="4. Cost",
            labels={"ledger": "all experiments"},
        ),
    log:
        "logs/compute_page.log",
    benchmark:
        "logs/benchmarks/compute_page.tsv"
    params:
        job=local_job("report_page.py"),
    message:
        "Make the report's page of the costs"
    shell:
        "{params.job[start]} --csv {input:q} --output {output:q} 2>&1 | tee -i {log}"


rule recipe_page:
    input:
        metrics_of_experiment,
    output:
        report(
            "results/report/{experiment}_recipe.html",
            caption="../report/recipe.rst",
            category="5. Recipes",
            labels={"experiment": "{experiment}"},
        ),
    log:
        "logs/recipe_page/{experiment}.log",
    benchmark:
        "logs/benchmarks/recipe_page/{experiment}.tsv"
    params:
        job=local_job("report_page.py", config=config_of_experiment),
    message:
        "Make the report's page of the recipe of {wildcards.experiment}"
    shell:
        "{params.job[start]} --experiment {wildcards.experiment} --config {params.job[config]:q}"
        " --output {output:q} 2>&1 | tee -i {log}"


# A folder that is ready for a model hub. It is made only if you ask for it, and nothing is sent.
rule publish:
    input:
        weights=RUN.encoder.weights,
        card=RUN.encoder.card,
        metrics=metrics_of_experiment,
        curves="results/figures/{experiment}.png",
        tables=tables_to_come,
    output:
        "results/published/{experiment}_seed{seed}/README.md",
    log:
        "logs/publish/{experiment}_seed{seed}.log",
    benchmark:
        "logs/benchmarks/publish/{experiment}_seed{seed}.tsv"
    params:
        verdict=verdict_so_far,
        job=local_job("publish.py", config=whole_config),
    message:
        "Make a folder of {wildcards.experiment}, seed {wildcards.seed}, for a model hub"
    shell:
        "{params.job[start]} --experiment {wildcards.experiment} --seed {wildcards.seed} --config {params.job[config]:q}"
        " --output {params.job[folder]:q} 2>&1 | tee -i {log}"


rule landing_page:
    input:
        parts_of_landing_page,
    output:
        parts.LANDING_PAGE,
    log:
        "logs/landing_page.log",
    benchmark:
        "logs/benchmarks/landing_page.tsv"
    params:
        code=commands.code_digest(SCRIPTS, ["landing_page.py", "selfsup/reports"]),
        job=local_job("landing_page.py", config=whole_config, shown=shown_in_report),
    message:
        "Make the page that the report opens on"
    shell:
        "{params.job[start]} {params.job[shown]} --config {params.job[config]:q} --output {output:q}"
        " 2>&1 | tee -i {log}"


rule report:
    input:
        parts_of_report,
    log:
        "logs/report.log",
    params:
        parts=number_of_inputs,
    message:
        "All parts of the report are there"
    shell:
        "echo The report has {params.parts} parts > {log}"
