package e2e

import (
	"cmp"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
)

var update = flag.Bool("update", false, "write the README's table of operations anew, as far as the tests that ran prove it")

const readmeFile = "../README.md"

// provers are the clients that can prove an operation, in the order of the table's columns.
var provers = []string{"neonctl", "api-client", "Go"}

// proved holds the operations that each client called successfully: of those that went through all of their calls in this run.
var proved = map[string][]string{}

// operationsTable returns the README before, in and behind its table of operations.
func operationsTable() (before, table, behind string, err error) {
	readme, err := os.ReadFile(readmeFile)
	if err != nil {
		return "", "", "", err
	}
	const start, end = "<!-- operations -->\n", "<!-- /operations -->"
	before, rest, ok1 := strings.Cut(string(readme), start)
	table, behind, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		return "", "", "", fmt.Errorf("README.md has no table of operations between %s and %s", strings.TrimSpace(start), end)
	}
	return before + start, table, end + behind, nil
}

// newTable writes the table of operations: those of the contract, with the marks of an old table where this run proved nothing.
func newTable(old string, wholeRun bool) (string, error) {
	marks := map[string][]bool{} // by operation, of each prover
	for line := range strings.Lines(old) {
		if f := strings.Split(line, "|"); len(f) == len(provers)+4 {
			for _, cell := range f[3 : 3+len(provers)] {
				id := strings.TrimSpace(f[1])
				marks[id] = append(marks[id], strings.TrimSpace(cell) != "")
			}
		}
	}
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		return "", err
	}
	type row struct {
		tag                   int
		path, method, id, can string
	}
	var rows []row
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			tag := slices.IndexFunc(doc.Tags, func(t *openapi3.Tag) bool { return t.Name == op.Tags[0] })
			rows = append(rows, row{tag, path, method, op.OperationID, op.Summary})
		}
	}
	slices.SortFunc(rows, func(a, b row) int {
		return cmp.Or(a.tag-b.tag, strings.Compare(a.path, b.path), strings.Compare(a.method, b.method))
	})
	var b strings.Builder
	fmt.Fprintf(&b, "\n| operation | what it does | %s |\n|---|---|%s\n", strings.Join(provers, " | "), strings.Repeat("---|", len(provers)))
	for _, r := range rows {
		fmt.Fprintf(&b, "| %s | %s |", r.id, r.can)
		for i, prover := range provers {
			had := len(marks[r.id]) > i && marks[r.id][i]
			calls, ran := proved[prover]
			has := slices.Contains(calls, r.id)
			switch {
			case prover == "Go" && !wholeRun: // some tests prove what they prove, and nothing about what others do
				has = has || had
			case prover == "Go" && !*update: // that they prove more than they did is no fault: hostile calls may succeed by chance
				has = has && had
			case !ran:
				has = had
			}
			b.WriteString(map[bool]string{true: " ✓ |", false: "  |"}[has])
		}
		b.WriteByte('\n')
	}
	unbuilt := api.Unbuilt()
	fmt.Fprintf(&b, "\nThe %d others of the published API answer 501 `NOT_IMPLEMENTED` with their name:\n", len(unbuilt))
	slices.SortStableFunc(unbuilt, func(a, b api.Route) int { return strings.Compare(a.Path, b.Path) })
	line := ""
	for i, r := range unbuilt {
		word := r.OperationID + ","
		if i == len(unbuilt)-1 {
			word = r.OperationID + "."
		}
		if len(line)+len(word) > 120 {
			b.WriteString(strings.TrimSpace(line) + "\n")
			line = ""
		}
		line += word + " "
	}
	b.WriteString(strings.TrimSpace(line) + "\n\n")
	return b.String(), nil
}

// checkTable compares the README's table with the contract and with what this run proved.
func checkTable(wholeRun bool) error {
	before, old, behind, err := operationsTable()
	if err != nil {
		return err
	}
	proved["Go"] = own.operations()
	if !wholeRun && !*update {
		delete(proved, "Go")
	}
	table, err := newTable(old, wholeRun)
	if err != nil || table == old {
		return err
	}
	if *update {
		return os.WriteFile(readmeFile, []byte(before+table+behind), 0o644)
	}
	for line := range strings.Lines(table) {
		if !strings.Contains(old, line) {
			fmt.Fprint(os.Stderr, "  + ", line)
		}
	}
	for line := range strings.Lines(old) {
		if !strings.Contains(table, line) {
			fmt.Fprint(os.Stderr, "  - ", line)
		}
	}
	return fmt.Errorf("README.md's table of operations is not what the tests proved; go test ./e2e -run 'TestNeonctl|TestAPIClient' -update writes it anew (all tests: the last column, too)")
}
