package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/google/uuid"

	"github.com/boughdb/bough/api"
)

// specification is the published one, as it ships inside of the cloud's own client. scripts/deps.sh test installs it.
const specification = "node_modules/@neondatabase/api-client/public-v2-for-users.gen.yaml"

// clients is the folder in which the clients from npm are installed.
func clients() string {
	if dir := os.Getenv("BOUGH_TEST_CLIENTS"); dir != "" {
		return dir
	}
	return filepath.Join("..", ".cache", "clients")
}

// published is the published specification, and how answers differ from it.
type published struct {
	routes []route

	mu    sync.Mutex
	known map[difference]bool // of differences.tsv; true: it occurred
	told  map[difference]bool
	new   []string // differences that nobody has been told of
}

// watch compares every answer of a server that passes through it with the published specification. All that the tests' own
// HTTP clients see does: TestMain makes one the default transport. What node clients see passes through a proxy with another.
type watch struct {
	*published
	next http.RoundTripper

	seenMu sync.Mutex
	seen   map[string]bool // the operations that succeeded, by id
}

type route struct {
	method   string
	segments []string // those in braces match anything
	id       string
	op       *openapi3.Operation
}

// difference is one way in which answers differ from the specification.
type difference struct {
	operation, status string
	at                string // the place in the body: projects[].owner
	rule              string // the rule that it breaks: required, type, enum, …; "unknown" for a key that is not published
}

// loadPublished reads the specification and the list of known differences. Without an installed client it is nil.
func loadPublished() (*published, error) {
	raw, err := os.ReadFile(filepath.Join(clients(), specification))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	doc, err := openapi3.NewLoader().LoadFromData(raw)
	if err != nil {
		return nil, err
	}
	p := &published{known: map[difference]bool{}, told: map[difference]bool{}}
	for path, item := range doc.Paths.Map() {
		for method, op := range item.Operations() {
			p.routes = append(p.routes, route{method, strings.Split(path, "/"), op.OperationID, op})
		}
	}
	// Of two that match, the one with a name where the other has a parameter goes first.
	slices.SortFunc(p.routes, func(a, b route) int { return slices.Compare(a.segments, b.segments) }) // "{" is behind letters
	lines, err := os.ReadFile("differences.tsv")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(lines)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(strings.TrimSuffix(line, "\n"), "\t")
		if len(f) != 5 || slices.Contains(f, "") {
			return nil, fmt.Errorf("differences.tsv: %q has not the columns operation, status, place, rule, reason", line)
		}
		p.known[difference{f[0], f[1], f[2], f[3]}] = false
	}
	return p, nil
}

// RoundTrip implements http.RoundTripper.
func (w *watch) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := w.next.RoundTrip(req)
	if err != nil || !strings.HasPrefix(req.URL.Path, api.BasePath+"/") {
		return res, err
	}
	body, failed := io.ReadAll(res.Body)
	res.Body.Close()
	res.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), failing{failed}))
	if r := w.find(req); r != nil && failed == nil { // not the server's own, nor a test that asks for nonsense
		w.check(r, res, body)
		if res.StatusCode < 300 {
			w.seenMu.Lock()
			w.seen[r.id] = true
			w.seenMu.Unlock()
		}
	}
	return res, nil
}

// operations returns the ids of those that succeeded.
func (w *watch) operations() []string {
	w.seenMu.Lock()
	defer w.seenMu.Unlock()
	return slices.Sorted(maps.Keys(w.seen))
}

// failing is the end of a body: the one that it had.
type failing struct{ err error }

func (f failing) Read([]byte) (int, error) {
	if f.err != nil {
		return 0, f.err
	}
	return 0, io.EOF
}

// find returns the published operation that a request is for.
func (p *published) find(req *http.Request) *route {
	have := strings.Split(strings.TrimPrefix(req.URL.EscapedPath(), api.BasePath), "/")
next:
	for i, r := range p.routes {
		if r.method != req.Method || len(r.segments) != len(have) {
			continue
		}
		for j, s := range r.segments {
			if s != have[j] && !strings.HasPrefix(s, "{") {
				continue next
			}
		}
		return &p.routes[i]
	}
	return nil
}

// check compares one answer.
func (p *published) check(r *route, res *http.Response, body []byte) {
	status := strconv.Itoa(res.StatusCode)
	report := func(at, rule, detail string) {
		d := difference{r.id, status, at, rule}
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, operation := range []string{r.id, "*"} {
			k := difference{operation, status, at, rule}
			if _, ok := p.known[k]; ok {
				p.known[k] = true
				return
			}
		}
		if !p.told[d] {
			p.told[d] = true
			p.new = append(p.new, fmt.Sprintf("%s\t%s\t%s\t%s\t(%s; %s %s: %.300s)", d.operation, d.status, d.at, d.rule, detail, res.Request.Method, res.Request.URL.Path, body))
		}
	}
	documented := r.op.Responses.Status(res.StatusCode)
	if documented == nil {
		if res.StatusCode < 400 {
			report("-", "status", "not documented")
		}
		documented = r.op.Responses.Default()
	}
	content := documented.Value.Content.Get("application/json")
	if content == nil || content.Schema == nil {
		if len(body) > 0 {
			report("-", "body", "there is none in the specification")
		}
		return
	}
	if kind := res.Header.Get("Content-Type"); kind != "application/json" && !strings.HasPrefix(kind, "application/json;") {
		report("-", "content type", kind)
		return
	}
	var value any
	if err := json.Unmarshal(body, &value); err != nil {
		report("-", "json", err.Error())
		return
	}
	schema := content.Schema.Value
	err := schema.VisitJSON(value, openapi3.VisitAsResponse(), openapi3.MultiErrors(), openapi3.EnableFormatValidation(),
		openapi3.WithStringFormatValidator("uuid", openapi3.NewCallbackValidator(func(s string) error { _, err := uuid.Parse(s); return err })),
		openapi3.WithStringFormatValidator("date-time", openapi3.NewCallbackValidator(func(s string) error { _, err := time.Parse(time.RFC3339, s); return err })))
	complaints(err, func(e *openapi3.SchemaError) { report(place(e.JSONPointer()), e.SchemaField, e.Reason) })
	unknown(value, []*openapi3.Schema{schema}, nil, func(path []string) { report(place(path), "unknown", "not published") })
}

// complaints walks to the innermost errors.
func complaints(err error, report func(*openapi3.SchemaError)) {
	switch e := err.(type) { //nolint:errorlint // the walk goes from layer to layer itself
	case openapi3.MultiError:
		for _, sub := range e {
			complaints(sub, report)
		}
	case *openapi3.SchemaError:
		if e.SchemaField == "allOf" && e.Origin != nil {
			complaints(errors.Unwrap(e.Origin), report)
			return
		}
		report(e)
	}
}

// unknown reports keys that no schema of a value names. The value's schemas are all that may apply to it.
func unknown(v any, schemas []*openapi3.Schema, path []string, report func([]string)) {
	for i := 0; i < len(schemas); i++ { // it grows
		for _, refs := range []openapi3.SchemaRefs{schemas[i].AllOf, schemas[i].OneOf, schemas[i].AnyOf} {
			for _, ref := range refs {
				schemas = append(schemas, ref.Value)
			}
		}
	}
	switch v := v.(type) {
	case []any:
		var items []*openapi3.Schema
		for _, s := range schemas {
			if s.Items != nil {
				items = append(items, s.Items.Value)
			}
		}
		for _, item := range v {
			unknown(item, items, append(slices.Clip(path), "0"), report)
		}
	case map[string]any:
		open := true // until something says which keys there are
		for _, s := range schemas {
			open = open && len(s.Properties) == 0
		}
		for key, sub := range v {
			var subs []*openapi3.Schema
			for _, s := range schemas {
				if prop := s.Properties[key]; prop != nil {
					subs = append(subs, prop.Value)
				} else if more := s.AdditionalProperties.Schema; more != nil {
					subs = append(subs, more.Value)
				}
			}
			at := append(slices.Clip(path), key)
			if len(subs) == 0 && !open {
				report(at)
				continue
			}
			unknown(sub, subs, at, report)
		}
	}
}

// place writes a path without what is different from answer to answer: positions and ids.
func place(path []string) string {
	out := ""
	for _, p := range path {
		switch _, err := strconv.Atoi(p); {
		case err == nil:
			out += "[]"
		case strings.HasPrefix(p, "br-"):
			out += ".*"
		default:
			out += "." + p
		}
	}
	if out = strings.TrimPrefix(out, "."); out == "" {
		return "-"
	}
	return out
}

// take returns the differences that are not in the list and that nobody has been told of.
func (p *published) take() []string {
	if p == nil {
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	out := p.new
	p.new = nil
	return out
}

// gone returns the listed differences that did not occur. After a run of all tests they should leave the list.
func (p *published) gone() (out []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for d, occurred := range p.known {
		if !occurred {
			out = append(out, strings.Join([]string{d.operation, d.status, d.at, d.rule}, "\t"))
		}
	}
	slices.Sort(out)
	return out
}
