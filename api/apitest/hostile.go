// Package apitest makes requests from the contract: valid ones, careless ones and hostile ones. The same seed makes the same
// requests.
package apitest

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
)

// Request is a call of an operation. Path, query and body hold placeholders such as {branch_id} for what exists only once a
// server runs; see Fill.
type Request struct {
	Operation string // operationId
	Method    string
	Path      string // below the API's base path, with its query
	Header    http.Header
	Body      []byte
	Chunked   bool // send without a length
}

// Fill replaces the placeholders by what exists.
func (r Request) Fill(known map[string]string) Request {
	if strings.Contains(r.Path, "{") || strings.Contains(string(r.Body), "{") {
		for name, value := range known {
			r.Path = strings.ReplaceAll(r.Path, "{"+name+"}", url.PathEscape(value))
			r.Body = []byte(strings.ReplaceAll(string(r.Body), "{"+name+"}", value))
		}
	}
	return r
}

// Generator makes requests. It is not safe for concurrent use.
type Generator struct {
	rnd     *rand.Rand
	calls   []call
	hostile float64 // how likely a value is not what it should be
}

type call struct {
	method, path string
	op           *openapi3.Operation
	params       openapi3.Parameters
}

// New reads the contract and the list of what is not built.
func New(seed uint64) (*Generator, error) {
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		return nil, err
	}
	g := &Generator{rnd: rand.New(rand.NewPCG(seed, 7))}
	for _, path := range doc.Paths.InMatchingOrder() {
		item := doc.Paths.Value(path)
		ops := item.Operations()
		for _, method := range slices.Sorted(maps.Keys(ops)) {
			op := ops[method]
			g.calls = append(g.calls, call{method, path, op, append(slices.Clone(item.Parameters), op.Parameters...)})
		}
	}
	for _, u := range api.Unbuilt() {
		g.calls = append(g.calls, call{u.Method, u.Path, &openapi3.Operation{OperationID: u.OperationID}, nil})
	}
	return g, nil
}

// Valid makes one request of every operation that is built, as a well-behaved client would.
func (g *Generator) Valid() []Request {
	var out []Request
	for _, c := range g.calls {
		if c.op.Responses != nil {
			out = append(out, g.request(c, 0, nil))
		}
	}
	return out
}

// Next makes a request of any operation. Most have something wrong with them, or much.
func (g *Generator) Next() Request {
	c := g.calls[g.rnd.IntN(len(g.calls))]
	if c.op.Responses == nil && g.chance(0.95) { // what is not built is dull
		return g.Next()
	}
	if c.method == http.MethodDelete && g.chance(0.7) { // or little would be left to work on
		return g.Next()
	}
	if g.chance(0.5) {
		return g.aimed(c)
	}
	r := g.request(c, pick(g, []float64{0, 0.05, 0.15, 0.4}), nil)
	if g.chance(0.4) {
		g.spoil(&r)
	}
	return r
}

// aimed makes a request that is fine but for one value, so that this one is what is looked at.
func (g *Generator) aimed(c call) Request {
	var names []string
	for _, p := range c.params {
		if p.Value.In != openapi3.ParameterInPath || g.chance(0.2) { // those lead to nothing that exists
			names = append(names, p.Value.Name)
		}
	}
	if c.op.RequestBody != nil {
		names = append(names, "body", "body", "body")
	}
	if len(names) == 0 {
		return g.request(c, 0, nil)
	}
	aim := []string{pick(g, names)}
	if aim[0] == "body" {
		aim = []string{}
		for s := bodySchema(c.op); s != nil && (len(aim) == 0 || g.chance(0.85)); {
			for s.Type.Is(openapi3.TypeArray) {
				s = s.Items.Value
			}
			if len(s.Properties) == 0 {
				break
			}
			name := pick(g, slices.Sorted(maps.Keys(s.Properties)))
			aim, s = append(aim, name), s.Properties[name].Value
		}
		aim = append([]string{"body"}, aim...)
	}
	return g.request(c, 0, aim)
}

func bodySchema(op *openapi3.Operation) *openapi3.Schema {
	if op.RequestBody != nil {
		if mt := op.RequestBody.Value.Content.Get("application/json"); mt != nil {
			return mt.Schema.Value
		}
	}
	return nil
}

func (g *Generator) chance(p float64) bool { return g.rnd.Float64() < p }

func pick[T any](g *Generator, list []T) T { return list[g.rnd.IntN(len(list))] }

// request makes a request whose values are wrong as often as hostile says, and the one that aim names: a parameter, or "body"
// and the names down to a property.
func (g *Generator) request(c call, hostile float64, aim []string) Request {
	g.hostile = hostile
	r := Request{Operation: c.op.OperationID, Method: c.method, Path: c.path, Header: http.Header{}}
	query := url.Values{}
	for _, ref := range c.params {
		p := ref.Value
		hit := len(aim) > 0 && aim[0] == p.Name
		switch {
		case p.In == openapi3.ParameterInPath:
			if hit || g.chance(hostile/2) {
				r.Path = strings.Replace(r.Path, "{"+p.Name+"}", pick(g, segments), 1)
			}
		case p.In == openapi3.ParameterInQuery && (hit || p.Required || g.chance(0.3)):
			query.Add(p.Name, g.text(p.Name, p.Schema.Value, hit))
			if g.chance(hostile / 2) {
				query.Add(p.Name, g.text(p.Name, p.Schema.Value, hit))
			}
		}
	}
	if len(query) > 0 {
		// The placeholders stay readable.
		r.Path += "?" + strings.NewReplacer("%7B", "{", "%7D", "}").Replace(query.Encode())
	}
	inBody := len(aim) > 0 && aim[0] == "body"
	if s := bodySchema(c.op); s != nil && (inBody || c.op.RequestBody.Value.Required || g.chance(0.7)) {
		if inBody {
			aim = aim[1:]
		} else {
			aim = nil
		}
		r.Body = []byte(g.value("", s, 0, aim))
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

// text is a parameter's value.
func (g *Generator) text(name string, s *openapi3.Schema, hit bool) string {
	if hit && name == "cursor" && g.chance(0.5) {
		return pick(g, cursors)
	}
	var aim []string
	if hit {
		aim = []string{}
	}
	v := g.value(name, s, 0, aim)
	var out string
	if json.Unmarshal([]byte(v), &out) == nil {
		return out
	}
	return v
}

// references are the properties that name something that exists.
var references = map[string]string{
	"project_id": "project_id", "branch_id": "branch_id", "parent_id": "branch_id", "endpoint_id": "endpoint_id", "org_id": "org_id",
	"source_org_id": "org_id", "destination_org_id": "other_org_id", "owner_name": "role_name", "role_name": "role_name",
	"database_name": "database_name", "project_ids": "project_id",
}

// value writes a JSON value for a schema. aim leads to the one that is wrong: this one when it is empty, none when it is nil.
func (g *Generator) value(name string, s *openapi3.Schema, depth int, aim []string) string {
	if aim != nil && len(aim) == 0 && s.Type.Is(openapi3.TypeString) && g.chance(0.4) {
		return quote(pick(g, names))
	}
	if aim != nil && len(aim) == 0 || g.chance(g.hostile) {
		return pick(g, values)
	}
	if ref, ok := references[name]; ok && (g.hostile == 0 || g.chance(0.8)) && !s.Type.Is(openapi3.TypeArray) {
		return `"{` + ref + `}"`
	}
	if s.Nullable && g.chance(0.1) {
		return "null"
	}
	if len(s.Enum) > 0 {
		b, err := json.Marshal(pick(g, s.Enum))
		if err == nil {
			return string(b)
		}
	}
	switch {
	case s.Type.Is(openapi3.TypeObject) || len(s.Properties) > 0:
		return g.object(s, depth, aim)
	case s.Type.Is(openapi3.TypeArray):
		items := make([]string, max(g.rnd.IntN(3), min(len(aim), 1)))
		for i := range items {
			items[i] = g.value(name, s.Items.Value, depth+1, aim)
		}
		return "[" + strings.Join(items, ",") + "]"
	case s.Type.Is(openapi3.TypeBoolean):
		return pick(g, []string{"true", "false"})
	case s.Type.Is(openapi3.TypeInteger), s.Type.Is(openapi3.TypeNumber):
		return g.number(s)
	}
	return quote(g.string(name, s))
}

func quote(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a text can always be written
	}
	return string(b)
}

func (g *Generator) object(s *openapi3.Schema, depth int, aim []string) string {
	var fields []string
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		required := slices.Contains(s.Required, name)
		if len(aim) > 0 && aim[0] == name {
			fields = append(fields, quote(name)+":"+g.value(name, s.Properties[name].Value, depth+1, aim[1:]))
			continue
		}
		if !required && !g.chance(0.25) || required && g.chance(g.hostile/2) || depth > 6 {
			continue
		}
		fields = append(fields, quote(name)+":"+g.value(name, s.Properties[name].Value, depth+1, nil))
		if g.chance(g.hostile / 4) {
			fields = append(fields, quote(name)+":"+pick(g, values))
		}
	}
	if s.AdditionalProperties.Schema != nil {
		for range g.rnd.IntN(3) {
			fields = append(fields, quote(pick(g, settings))+":"+g.value("", s.AdditionalProperties.Schema.Value, depth+1, nil))
		}
	}
	if g.chance(g.hostile) {
		fields = append(fields, pick(g, extras))
	}
	return "{" + strings.Join(fields, ",") + "}"
}

func (g *Generator) number(s *openapi3.Schema) string {
	lo, hi := 0.0, 1000.0
	if s.Min != nil {
		lo = *s.Min
	}
	if s.Max != nil {
		hi = *s.Max
	} else {
		hi = max(hi, lo+10)
	}
	v := lo + g.rnd.Float64()*(hi-lo)
	switch g.rnd.IntN(6) {
	case 0:
		v = lo
	case 1:
		v = hi
	case 2:
		v = lo - g.hostile*10
	}
	if s.Type.Is(openapi3.TypeInteger) {
		return strconv.FormatFloat(float64(int64(v)), 'f', -1, 64)
	}
	return strconv.FormatFloat(float64(int64(v*4))/4, 'f', -1, 64)
}

func (g *Generator) string(name string, s *openapi3.Schema) string {
	switch {
	case s.Format == "date-time" || strings.HasSuffix(name, "_at") || strings.HasSuffix(name, "timestamp"):
		return pick(g, times)
	case s.Format == "uuid":
		return "{operation_id}"
	case strings.HasSuffix(name, "_url") || s.Format == "uri":
		return pick(g, []string{"https://example.com/.well-known/jwks.json", "http://127.0.0.1:1/", "https://[::1]:443/x?y#z"})
	case strings.Contains(name, "email"):
		return fmt.Sprintf("guest%d@example.com", g.rnd.IntN(1000))
	case strings.Contains(name, "lsn"):
		return pick(g, []string{"0/0", "0/1BB0238", "FFFFFFFF/FFFFFFFF", "zero"})
	case name == "pg_version":
		return "17"
	}
	if g.hostile == 0 || g.chance(0.5) {
		return fmt.Sprintf("name-%d", g.rnd.IntN(1_000_000))
	}
	return pick(g, names)
}

// spoil damages a request as a whole.
func (g *Generator) spoil(r *Request) {
	body := string(r.Body)
	switch g.rnd.IntN(18) {
	case 0:
		if len(body) > 0 {
			body = body[:g.rnd.IntN(len(body))]
		}
	case 1:
		body += pick(g, []string{"}", ",", `{"project":{}}`, "\x00", "]]", "//"})
	case 2:
		body = "\xef\xbb\xbf" + body
	case 3:
		body = strings.ReplaceAll(body, "name", "n\x00ame")
	case 4:
		deep := 10_000
		body = pick(g, []string{
			strings.Repeat("[", deep) + strings.Repeat("]", deep), strings.Repeat(`{"branch":`, deep) + "1" + strings.Repeat("}", deep),
			strings.Repeat("[", deep), `{"project":{"settings":` + strings.Repeat(`{"quota":`, deep) + "1" + strings.Repeat("}", deep) + "}}",
		})
	case 5:
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		body = pick(g, forms)
	case 6:
		r.Header.Set("Content-Type", pick(g, mediaTypes))
	case 7:
		r.Header.Del("Content-Type")
	case 8:
		r.Header.Set("Idempotency-Key", pick(g, []string{"", "again", "again", strings.Repeat("k", 300), "a b", `"quoted"`}))
	case 9:
		r.Header.Set("X-Request-ID", pick(g, []string{strings.Repeat("x", 4000), "a b", "'; --", "\xff\xfe"}))
	case 10:
		r.Header.Set("X-Padding", strings.Repeat("p", pick(g, []int{8 << 10, 60 << 10, 200 << 10})))
	case 11:
		r.Chunked = true
	case 12:
		if g.chance(0.15) {
			body = `{"project":{"name":"` + strings.Repeat("x", 10<<20) + `"}}`
		}
	case 13:
		r.Method = pick(g, []string{"PUT", "HEAD", "OPTIONS", "TRACE", "POST", "PATCH", "FETCH"})
	case 14:
		r.Path += pick(g, []string{"/", "?", "?limit=1&limit=2", "?%zz", "?a=%00", "?cursor=%ff%fe", "/..", "//", "?;", "?search=" + strings.Repeat("s", 6000)})
	case 15:
		r.Header.Set("Authorization", pick(g, []string{"", "Bearer", "Bearer ", "Bearer \xff", "Basic YTpi", "Bearer " + strings.Repeat("k", 5000), "bearer napi_'; DROP TABLE api_keys; --"}))
	case 16:
		if len(body) > 2 {
			at := g.rnd.IntN(len(body))
			body = body[:at] + string(rune(g.rnd.IntN(256))) + body[at+1:]
		}
	case 17:
		r.Header.Set("Content-Encoding", "gzip")
		r.Header.Set("Accept-Encoding", "identity;q=0, *;q=0")
		r.Header.Set("Accept", "text/csv")
	}
	r.Body = []byte(body)
}

// Raw material. What stands here is sent as it is.
var (
	segments = []string{
		"..", "%2e%2e%2f%2e%2e%2fetc%2fpasswd", "%00", "a%00b", "%ff%fe", "'%20OR%201=1--", "%22%3B%20DROP%20TABLE%20branches%3B--", "0", "-1",
		"99999999999999999999", strings.Repeat("a", 61), strings.Repeat("a", 5000), "%F0%9F%8C%B3", "A", "%20", "br-no-such-12345678", "null", "{}", "*", "%25s%25n", ";",
		"%5c", "%0d%0aSet-Cookie:a=b",
	}
	values = []string{
		"null", "true", "false", `""`, "0", "-1", "-0", "1.5", "1e999", "-1e999", "9223372036854775807", "9223372036854775808", "-9223372036854775809",
		"2147483648", "1e18", "0.1e-400", "NaN", "Infinity", "0x10", "01", "[]", "{}", "[null]", "[[[[[[[[]]]]]]]]", `{"a":{"b":{}}}`, `[1,"2",null]`,
		`"\u0000"`, `"a\u0000b"`, `"\ud800"`, "\"\xff\xfe\"", `"🌳 Ast"`, `"بِسْمِ"`, `"\u202eevil"`, `"` + strings.Repeat("x", 10_000) + `"`, `"` + strings.Repeat("ä", 200) + `"`,
		`"'; DROP TABLE branches; --"`, `"../../../etc/passwd"`, `"$(reboot)"`, `"%s%n%x"`, `"\"; x"`, `"\n\r\t"`, `"{branch_id}"`, `"{project_id}"`,
		`"1"`, `"true"`, "123456789012345678901234567890", `"9999-12-31T23:59:59Z"`, `"0000-00-00T00:00:00Z"`, `"-infinity"`, `"infinity"`, `"now"`,
		`"2030-02-31T00:00:00Z"`, `"2262-04-12T00:00:00Z"`, `"0001-01-01T00:00:00Z"`, `["a","a","a"]`, `"eyJuIjoiXHUwMDAwIiwiaSI6IngifQ"`,
		`"eyJ0IjoiMjAzMC0wMS0wMVQwMDowMDowMFoiLCJpIjoiXHUwMDAwIn0"`,
	}
	names = []string{
		"main", "neondb", "neondb_owner", "postgres", "template1", "cloud_admin", "pg_x", "public", "Größe", "名前", "🌳🌳🌳", "a b", " a", "a ", "a/b", "../x", ".", "..", "a\"b", "a'b", "a\\b",
		"a;b", "$1", "%s", "a\nb", "\u0001", "\u007f", "\u200b", "\u202egnp", "e\u0301", "ﬀ", "İ", "-x", "--help", "x=y", "{}", "<script>", "a@b", "null", "0",
		strings.Repeat("n", 63), strings.Repeat("n", 64), strings.Repeat("ä", 32), strings.Repeat("n", 256), strings.Repeat("n", 257), strings.Repeat("🌳", 64),
	}
	settings = []string{
		"work_mem", "max_connections", "shared_buffers", "fsync", "search_path", "nonsense", "a.b", "statement_timeout", "TimeZone", "log_line_prefix",
		"shared_preload_libraries", "data_directory", "", "work_mem\nfsync", "'", "wal_level",
	}
	extras = []string{
		`"unknown":1`, `"":""`, `"__proto__":{}`, `"NAME":"upper"`, `"name":"twice"`, `"id":"mine"`, `"a\u0000":1`, `"name":null`, `"branch":[]`, `"\ud83d":1`,
	}
	times = []string{
		"2030-01-31T15:04:05Z", "2026-12-01T00:00:00+14:00", "1970-01-01T00:00:00Z", "9999-12-31T23:59:59.999999999Z", "0001-01-01T00:00:00Z", "2030-01-31",
		"2030-01-31T15:04:05", "2030-02-30T00:00:00Z", "tomorrow",
	}
	cursors = []string{
		"eyJuIjoiXHUwMDAwIiwiaSI6IngifQ", "eyJ0IjoiMjAzMC0wMS0wMVQwMDowMDowMFoiLCJpIjoiXHUwMDAwIn0", "eyJpIjoiXHVkODAwIn0", "e30", "bnVsbA",
		"eyJ0IjoiOTk5OS0xMi0zMVQyMzo1OTo1OVoiLCJpIjoieCJ9", "eyJ0IjoiMDAwMC0wMS0wMVQwMDowMDowMFoiLCJpIjoieCJ9", "9999-12-31T23:59:59Z", "0000-01-01T00:00:00Z", "🌳",
		"-1", "{project_id}", strings.Repeat("e", 5000),
	}
	mediaTypes = []string{
		"text/plain", "application/xml", "multipart/form-data", "multipart/form-data; boundary=x", "application/json; charset=utf-16", "application/x-www-form-urlencoded; charset=x",
		"*/*", ";;;", "application/merge-patch+json", "text/html", strings.Repeat("a/", 500),
	}
	forms = []string{
		"project[name]=x", "project[name]=x&project[name]=y", "project=1&project[name]=x", "project[[name]]=x", "project[name", "project]name[=x", "[]=1", "=1", "&&&", "%zz=1", "a=%ff",
		"project[settings][quota][active_time_seconds]=1e999", "project[pg_version]=", "branch[name]=%00", "endpoints[0][type]=read_only&endpoints[999][type]=read_write",
		"endpoints[1000][type]=read_only", "endpoints[-1][type]=x", "endpoints[0]=x", "endpoints[]=x", "endpoints[a][type]=x", "endpoint[branch_id]={branch_id}&endpoint[type]=read_only",
		"project" + strings.Repeat("[a]", 11) + "=1", "project" + strings.Repeat("[settings]", 5000) + "=1", strings.Repeat("a=1&", 3000), "role[name]=form&role[name][x]=1",
		"database[name]=d&database[owner_name]={role_name}", "branch[annotation_value][k]=v", "annotation_value[%F0%9F%8C%B3]=%F0%9F%8C%B3",
	}
)
