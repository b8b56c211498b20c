"""Method comparison studies: attribution methods judged side by side on one model, one data set, one budget."""
