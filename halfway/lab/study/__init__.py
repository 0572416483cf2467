"""What a study is: conditions, records, rules, the family, the kind of evidence, words."""
