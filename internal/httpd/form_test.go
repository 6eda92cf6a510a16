package httpd

import (
	"encoding/json"
	"strconv"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/core"
)

func bodySchema(t testing.TB, id string) *openapi3.Schema {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	for _, item := range doc.Paths.Map() {
		for _, op := range item.Operations() {
			if op.OperationID == id {
				return op.RequestBody.Value.Content.Get(jsonType).Schema.Value
			}
		}
	}
	t.Fatalf("no operation %s", id)
	return nil
}

func TestForms(t *testing.T) {
	schema := bodySchema(t, "createProjectBranch")
	for form, want := range map[string]string{
		"":                        `{}`,
		"branch[name]=7":          `{"branch":{"name":"7"}}`,
		"branch[protected]=TRUE":  `{"branch":{"protected":true}}`,
		"branch[protected]=maybe": `{"branch":{"protected":"maybe"}}`,
		"endpoints[3][type]=a&endpoints[1][type]=b": `{"endpoints":[{"type":"b"},{"type":"a"}]}`,
		"endpoints[0][suspend_timeout_seconds]=-1":  `{"endpoints":[{"suspend_timeout_seconds":-1}]}`,
		"endpoints[0][suspend_timeout_seconds]=0x1": `{"endpoints":[{"suspend_timeout_seconds":"0x1"}]}`,
		"endpoints[0][suspend_timeout_seconds]=":    `{"endpoints":[{"suspend_timeout_seconds":""}]}`,
		"annotation_value[a.b]=1":                   `{"annotation_value":{"a.b":"1"}}`,
		"other[x][0]=1":                             `{"other":{"x":{"0":"1"}}}`,
	} {
		v, err := decodeForm(form, schema)
		if err != nil {
			t.Errorf("%s: %v", form, err)
			continue
		}
		if got, _ := json.Marshal(v); string(got) != want {
			t.Errorf("%s\n got %s\nwant %s", form, got, want)
		}
	}
	for _, form := range []string{
		"=x", "[a]=x", "a[=x", "a]=x", "a[b=x", "a[b]c=x", "a[][b]=x", "a[[b]]=x", "branch=x&branch[name]=y",
		"branch[name]=x&branch[name]=y", "endpoints[x][type]=a", "endpoints[-1][type]=a", "endpoints[1000][type]=a",
		"endpoints[01][type]=a", "%zz=1", "a;b=1", "a" + strings.Repeat("[b]", 10) + "=x", strings.Repeat("a=1&", formFields),
	} {
		if v, err := decodeForm(form, schema); !core.IsKind(err, core.KindInvalid) {
			t.Errorf("%.60s was read as %v, %v", form, v, err)
		}
	}
}

// Whatever a form holds, it is refused as invalid or becomes a JSON object no larger than it could be.
func FuzzForm(f *testing.F) {
	for _, seed := range []string{
		"project[name]=x&project[pg_version]=15", "endpoints[0][type]=read_write&endpoints[1][type]=b", "a[]=1&a[]=2", "a[b][c]=",
		"branch[expires_at]=&branch[protected]=1", "a[0][1][2][3]=x", "%5B=%5D", "annotation_value[x]=y&annotation_value[z]=",
	} {
		f.Add(seed)
	}
	schema := bodySchema(f, "createProjectBranch")
	f.Fuzz(func(t *testing.T, form string) {
		v, err := decodeForm(form, schema)
		if err != nil {
			if !core.IsKind(err, core.KindInvalid) {
				t.Fatalf("%v", err)
			}
			return
		}
		if _, ok := v.(map[string]any); !ok {
			t.Fatalf("became a %T", v)
		}
		if v, err = prune(schema, v); err != nil {
			return
		}
		raw, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if len(raw) > 100+20*len(form)*formDepth {
			t.Fatalf("%d bytes became %s", len(form), strconv.Itoa(len(raw)))
		}
	})
}
