package store

// Query is the SQL of a page of branches and its arguments, for the test of the plans.
func (f BranchFilter) Query() (string, map[string]any, error) { return f.query() }
