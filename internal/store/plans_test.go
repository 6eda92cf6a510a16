package store_test

import (
	"encoding/json"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/boughdb/bough/internal/store"
	"github.com/boughdb/bough/internal/store/storetest"
)

// readsAll names the queries that may read a whole table, with the reason.
var readsAll = map[string]string{
	"ListBranchNames":     "bough pool status: every branch",
	"AllIncarnations":     "history: what is kept depends on what all descend from",
	"AllSnapshots":        "history: as AllIncarnations",
	"ListHandles":         "one row for each compute that runs, all of them wanted",
	"HoldBusyProjects":    "a server starts alone: all computes that run",
	"ResetHolders":        "a server starts alone: all of them",
	"InheritProjects":     "a server has died: all of its projects, and there are few servers",
	"LeaveProjects":       "all projects of a server, and there are few servers",
	"DropHolder":          "a server has died: all of its projects, and there are few servers",
	"CountEndpointStates": "metrics: counts all endpoints",
	"ListUsers":           "bough admin: all of them",
	"ListOrganizations":   "bough admin: all of them",
	"ListKeys":            "bough admin: all of them",
	"PruneMeters":         "once an hour: one row for each endpoint that ever ran",
	"PruneOrphanUsage":    "once an hour: the projects of two months",
}

// planNode is a node of EXPLAIN (FORMAT JSON).
type planNode struct {
	NodeType  string `json:"Node Type"`
	Relation  string `json:"Relation Name"`
	Index     string `json:"Index Name"`
	IndexCond string `json:"Index Cond"`
	Plans     []planNode
}

func (n planNode) each(f func(planNode)) {
	f(n)
	for _, sub := range n.Plans {
		sub.each(f)
	}
}

// generated returns the SQL of every query that sqlc made code for, by name.
func generated(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("db/*.sql.go")
	if err != nil || len(files) == 0 {
		t.Fatal("no generated queries", err)
	}
	named := regexp.MustCompile(`^-- name: (\w+) :`)
	out := map[string]string{}
	for _, file := range files {
		tree, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(tree, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
				sql, err := strconv.Unquote(lit.Value)
				if m := named.FindStringSubmatch(sql); err == nil && m != nil {
					out[m[1]] = sql
				}
			}
			return true
		})
	}
	return out
}

// No query looks through a whole table that grows with the installation. The plans are generic ones, as of a prepared
// statement, on a control database of 10 000 branches; tables that are small there are judged by whether an index could be used.
func TestEveryQueryHasAnIndex(t *testing.T) {
	s := open(t)
	ctx := t.Context()
	org, err := s.InsertOrganization(ctx, "org-plans-1", "h", "Org")
	check(t, err)
	check(t, storetest.Fill(ctx, s.Pool(), org.ID, 100, 100))
	conn, err := s.Pool().Acquire(ctx)
	check(t, err)
	defer conn.Release()
	exec := func(sql string) {
		t.Helper()
		if _, err := conn.Exec(ctx, sql); err != nil {
			t.Fatalf("%v: %s", err, sql)
		}
	}
	// What only servers write.
	exec("INSERT INTO holders SELECT id, 1, true FROM projects")
	exec("INSERT INTO handles SELECT id, id, '{}' FROM branches WHERE id ~ '7$'")
	exec("ANALYZE holders, handles")
	exec("SET plan_cache_mode = force_generic_plan")

	rows := map[string]float64{}
	partial := map[string]bool{} // indexes whose predicate narrows by itself
	tables, err := conn.Query(ctx, "SELECT relname, reltuples::float8 FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace")
	check(t, err)
	var name string
	var n float64
	_, err = pgx.ForEachRow(tables, []any{&name, &n}, func() error { rows[name] = n; return nil })
	check(t, err)
	indexes, err := conn.Query(ctx, "SELECT indexrelid::regclass::text FROM pg_index WHERE indpred IS NOT NULL")
	check(t, err)
	_, err = pgx.ForEachRow(indexes, []any{&name}, func() error { partial[name] = true; return nil })
	check(t, err)

	const big = 900 // rows
	// judge complains about what a plan reads in full. Without seqscan it is about the small tables only.
	judge := func(query, plan string, small bool) {
		var out []struct{ Plan planNode }
		if err := json.Unmarshal([]byte(plan), &out); err != nil {
			t.Fatal(err)
		}
		out[0].Plan.each(func(n planNode) {
			whole := n.NodeType == "Seq Scan" ||
				(strings.HasPrefix(n.NodeType, "Index") || n.NodeType == "Bitmap Index Scan") && n.IndexCond == "" && !partial[n.Index]
			relation := n.Relation
			if relation == "" {
				relation = n.Index
			}
			if count, known := rows[n.Relation]; whole && (!known || (count < big) == small) && readsAll[query] == "" {
				t.Errorf("%s reads all of %s:\n%s", query, relation, plan)
			}
		})
	}
	explain := func(query, sql string, args ...any) {
		for _, small := range []bool{false, true} {
			exec(fmt.Sprintf("SET enable_seqscan = %t", !small))
			exec("DISCARD PLANS")
			var plan string
			if err := conn.QueryRow(ctx, "EXPLAIN (FORMAT JSON, COSTS OFF) "+sql, args...).Scan(&plan); err != nil {
				t.Fatalf("%s: %v", query, err)
			}
			judge(query, plan, small)
		}
	}

	queries := generated(t)
	placeholder := regexp.MustCompile(`\$(\d+)`)
	for _, query := range slices.Sorted(maps.Keys(queries)) {
		params := 0
		for _, m := range placeholder.FindAllStringSubmatch(queries[query], -1) {
			i, err := strconv.Atoi(m[1])
			check(t, err)
			params = max(params, i)
		}
		exec(fmt.Sprintf("PREPARE %q AS %s", query, queries[query]))
		call := fmt.Sprintf("EXECUTE %q", query)
		if params > 0 {
			call += "(" + strings.TrimSuffix(strings.Repeat("NULL,", params), ",") + ")"
		}
		explain(query, call)
	}
	for query := range readsAll {
		if queries[query] == "" {
			t.Errorf("%s may read a whole table, and is none of the queries", query)
		}
	}

	// The one query that is put together by hand. A page starts where the one before ended.
	for _, by := range []string{"name", "created_at", "updated_at"} {
		for _, desc := range []bool{false, true} {
			f := store.BranchFilter{ProjectID: fmt.Sprintf(storetest.ProjectID, 7), SortBy: by, Desc: desc, Limit: 30}
			_, f.Cursor, err = s.ListBranches(ctx, f)
			check(t, err)
			for _, search := range []string{"", "branch 1"} {
				f.Search = search
				sql, args, err := f.Query()
				check(t, err)
				explain(fmt.Sprintf("ListBranches by %s, descending: %t", by, desc), sql, pgx.NamedArgs(args))
			}
		}
	}

	// A row that goes is looked for wherever it may be referred to.
	keys, err := conn.Query(ctx, `SELECT conname FROM pg_constraint c
		WHERE contype = 'f' AND connamespace = 'public'::regnamespace AND confrelid NOT IN ('organizations'::regclass, 'users'::regclass)
		AND NOT EXISTS (SELECT FROM pg_index i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1]
			AND (i.indpred IS NULL OR pg_get_expr(i.indpred, i.indrelid) ~ '^\(\w+ IS NOT NULL\)$'))`)
	check(t, err)
	_, err = pgx.ForEachRow(keys, []any{&name}, func() error { t.Errorf("the foreign key %s has no index", name); return nil })
	check(t, err)
}
