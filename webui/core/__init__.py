"""What the pages and the JSON twin have in common: wishes and changes, looks, problems, words, and facts as rows."""
