package httpd

import (
	"encoding/json"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/internal/core"
)

// Bounds of a form body, so that a small one cannot become a large tree.
const (
	formFields = 2000
	formDepth  = 10
	formIndex  = 1000
)

// formNode is a field of a form: it has values or fields of its own, not both.
type formNode struct {
	values []string
	fields map[string]*formNode
}

// decodeForm turns project[name]=x, endpoints[0][type]=read_write and ips[]=a&ips[]=b into the JSON value that they stand
// for. The schema says which texts are numbers, booleans and lists; a text that does not fit stays a text, for the
// validator to complain about.
func decodeForm(body string, schema *openapi3.Schema) (any, error) {
	if strings.Count(body, "&") >= formFields {
		return nil, core.Invalidf("the form has more than %d fields", formFields)
	}
	form, err := url.ParseQuery(body)
	if err != nil {
		return nil, core.Invalidf("the form body cannot be read; check its %%-escapes")
	}
	root := &formNode{}
	for _, key := range sortedKeys(form) {
		path, err := formPath(key)
		if err != nil {
			return nil, err
		}
		node := root
		for _, name := range path {
			if node.values != nil {
				return nil, core.Invalidf("the form field %s is both a value and a group", clip(key))
			}
			if node.fields == nil {
				node.fields = map[string]*formNode{}
			}
			next := node.fields[name]
			if next == nil {
				next = &formNode{}
				node.fields[name] = next
			}
			node = next
		}
		if node.fields != nil || node.values != nil {
			return nil, core.Invalidf("the form field %s is both a value and a group", clip(key))
		}
		node.values = form[key]
	}
	return root.value("", schema)
}

// formPath splits a key: a[b][0] is a, b, 0. A final [] marks a list and adds nothing.
func formPath(key string) ([]string, error) {
	bad := core.Invalidf("the form field %s cannot be read; write nested fields like project[name] and endpoints[0][type]", clip(key))
	name, rest, nested := strings.Cut(key, "[")
	if name == "" || strings.ContainsAny(name, "]") {
		return nil, bad
	}
	path := []string{name}
	for nested {
		var part string
		if part, rest, nested = strings.Cut(rest, "]"); !nested {
			return nil, bad
		}
		if strings.Contains(part, "[") || (part == "" && rest != "") {
			return nil, bad
		}
		if part != "" {
			path = append(path, part)
		}
		if rest == "" {
			break
		}
		if !strings.HasPrefix(rest, "[") {
			return nil, bad
		}
		rest = rest[1:]
	}
	if len(path) > formDepth {
		return nil, core.Invalidf("the form field %s is nested more than %d deep", clip(key), formDepth)
	}
	return path, nil
}

func (n *formNode) value(at string, schema *openapi3.Schema) (any, error) {
	isList := schema != nil && schema.Type.Is(openapi3.TypeArray)
	switch {
	case n.fields != nil && isList:
		return n.list(at, schema)
	case n.fields != nil:
		out := map[string]any{}
		for _, name := range sortedKeys(n.fields) {
			sub, _ := property(schema, name)
			v, err := n.fields[name].value(joinField(at, name), sub)
			if err != nil {
				return nil, err
			}
			out[name] = v
		}
		return out, nil
	case isList:
		out := make([]any, 0, len(n.values))
		for _, v := range n.values {
			if v != "" { // ips= is the empty list
				out = append(out, scalar(v, itemSchema(schema)))
			}
		}
		return out, nil
	case len(n.values) > 1:
		return nil, core.Invalidf("%s: is given %d times", at, len(n.values))
	case len(n.values) == 1:
		return scalar(n.values[0], schema), nil
	default:
		return map[string]any{}, nil
	}
}

// list orders the fields by their numbers; gaps close.
func (n *formNode) list(at string, schema *openapi3.Schema) (any, error) {
	type entry struct {
		i    int
		node *formNode
	}
	entries := make([]entry, 0, len(n.fields))
	for name, node := range n.fields {
		i, err := strconv.Atoi(name)
		if err != nil || i < 0 || i >= formIndex || strconv.Itoa(i) != name {
			return nil, core.Invalidf("%s: is a list; number its fields from 0 to %d", at, formIndex-1)
		}
		entries = append(entries, entry{i, node})
	}
	slices.SortFunc(entries, func(a, b entry) int { return a.i - b.i })
	out := make([]any, 0, len(entries))
	for _, e := range entries {
		v, err := e.node.value(at+"["+strconv.Itoa(e.i)+"]", itemSchema(schema))
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

// scalar reads a text as the schema's type.
func scalar(s string, schema *openapi3.Schema) any {
	if schema == nil {
		return s
	}
	switch {
	case s == "" && schema.Nullable:
		return nil
	case schema.Type.Is(openapi3.TypeBoolean):
		switch strings.ToLower(s) {
		case "true", "1":
			return true
		case "false", "0":
			return false
		}
	case schema.Type.Is(openapi3.TypeInteger), schema.Type.Is(openapi3.TypeNumber):
		// json.Valid because what ParseFloat takes and JSON does not (inf, 0x1p3, 1_0) must stay a text.
		if c := s; c != "" && (c[0] == '-' || (c[0] >= '0' && c[0] <= '9')) && json.Valid([]byte(c)) {
			return json.Number(s)
		}
	}
	return s
}

func joinField(at, name string) string {
	if at == "" {
		return name
	}
	return at + "." + name
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
