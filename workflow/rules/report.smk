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
        config=lambda wildcards, input: config_of_table(wildcards),
        code=code_digest("make_table.py", "selfsup/evaluation"),
        python=lambda wildcards, input: PYTHON,
        script=lambda wildcards, input: script("make_table.py"),
    message:
        "Make results/{wildcards.table}.csv"
    shell:
        "{params.python} {params.script} --table {wildcards.table} --config {params.config:q} --output {output.csv:q}"
        " 2>&1 | tee -i {log}"
