package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
	"github.com/boughdb/bough/internal/postgres"
)

// fieldAsk is what a test asks of one body field: it is honoured, and shown where the answer says, or refused.
type fieldAsk struct {
	value   any
	refused int    // the status; 0: honoured
	shown   string // path in the answer; "": the field's own; "-": not shown, tested elsewhere
}

// fieldsOf lists the leaves of a body's schema: "project.settings.hipaa", "endpoints[].type".
func fieldsOf(prefix string, s *openapi3.Schema, out map[string]bool) {
	switch {
	case s.Type.Is(openapi3.TypeArray) && len(s.Items.Value.Properties) > 0:
		fieldsOf(prefix+"[]", s.Items.Value, out)
	case len(s.Properties) == 0:
		out[prefix] = true
	}
	for name, p := range s.Properties {
		fieldsOf(strings.TrimPrefix(prefix+"."+name, "."), p.Value, out)
	}
}

// put sets a field in a body.
func put(body map[string]any, path string, v any) {
	name, rest, deeper := strings.Cut(path, ".")
	if !deeper {
		body[name] = v
		return
	}
	var next map[string]any
	if list, ok := strings.CutSuffix(name, "[]"); ok {
		if body[list] == nil {
			body[list] = []any{map[string]any{}}
		}
		next = body[list].([]any)[0].(map[string]any)
	} else {
		if body[name] == nil {
			body[name] = map[string]any{}
		}
		next = body[name].(map[string]any)
	}
	put(next, rest, v)
}

func pick(v any, path string) any {
	for name := range strings.SplitSeq(path, ".") {
		name, list := strings.CutSuffix(name, "[]")
		m, _ := v.(map[string]any)
		if v = m[name]; list {
			if items, ok := v.([]any); ok && len(items) > 0 {
				v = items[0]
			}
		}
	}
	return v
}

// TestEveryField asks for each body field of projects, branches and endpoints: none is taken and forgotten.
func TestEveryField(t *testing.T) {
	s := start(t)
	p := s.project(t)
	child := p.branch(t, "")
	bare := p.branch(t, "")
	spare := p.branch(t, "")
	p.suspend(t, bare.Endpoint)
	if _, err := s.DeleteEndpoint(t.Context(), p.ID, bare.Endpoint); err != nil {
		t.Fatal(err)
	}
	info, err := s.Project(t.Context(), p.ID)
	if err != nil {
		t.Fatal(err)
	}
	org := *info.OrgID

	later := inSeconds(3600)
	audit := fieldAsk{value: "base"} // see TestAuditLog
	if builds, err := postgres.FindBuilds(t.Context(), nil); err != nil {
		t.Fatal(err)
	} else if b, _ := postgres.Default(builds); !b.HasLibrary(postgres.AuditLibrary) {
		audit.refused = 422
	}
	settings := map[string]fieldAsk{
		"allowed_ips.ips":                     {value: []any{"127.0.0.0/8"}},
		"allowed_ips.protected_branches_only": {value: true},
		"enable_logical_replication":          {value: true},
		"maintenance_window.weekdays":         {value: []any{3.0}},
		"maintenance_window.start_time":       {value: "01:00"},
		"maintenance_window.end_time":         {value: "02:00"},
		"block_public_connections":            {value: true},
		"block_vpc_connections":               {value: true, refused: 422},
		"hipaa":                               {value: true, refused: 422},
		"audit_log_level":                     audit,
		"preload_libraries.use_defaults":      {value: false},
		"preload_libraries.enabled_libraries": {value: []any{"auto_explain"}},
		"quota.active_time_seconds":           {value: 1000000.0},
		"quota.compute_time_seconds":          {value: 1000000.0},
		"quota.written_data_bytes":            {value: 1e12},
		"quota.data_transfer_bytes":           {value: 1e12},
		"quota.logical_size_bytes":            {value: 1e12},
	}
	defaults := map[string]fieldAsk{
		"autoscaling_limit_min_cu": {value: 0.5},
		"autoscaling_limit_max_cu": {value: 1.0},
		"suspend_timeout_seconds":  {value: 1234.0},
		"pg_settings":              {value: map[string]any{"work_mem": "5MB"}},
		"pgbouncer_settings":       {value: map[string]any{"default_pool_size": "7"}, refused: 422},
	}
	endpointSettings := map[string]fieldAsk{
		"settings.pg_settings":                         {value: map[string]any{"work_mem": "6MB"}},
		"settings.pgbouncer_settings":                  {value: map[string]any{"default_pool_size": "7"}, refused: 422},
		"settings.preload_libraries.use_defaults":      {value: false},
		"settings.preload_libraries.enabled_libraries": {value: []any{"auto_explain"}},
	}
	with := func(prefix string, more map[string]fieldAsk, own map[string]fieldAsk) map[string]fieldAsk {
		out := maps.Clone(own)
		for name, a := range more {
			out[prefix+name] = a
		}
		return out
	}
	updateProject := with("project.settings.", settings, with("project.default_endpoint_settings.", defaults, map[string]fieldAsk{
		"project.name":                      {value: "another name"},
		"project.history_retention_seconds": {value: 3600.0},
	}))
	createProject := with("", updateProject, map[string]fieldAsk{
		"project.org_id":                   {value: org},
		"project.region_id":                {value: "aws-eu-central-1"},
		"project.pg_version":               {value: 15.0},
		"project.provisioner":              {value: "k8s-neonvm"},
		"project.store_passwords":          {value: false},
		"project.branch.name":              {value: "trunk", shown: "branch.name"},
		"project.branch.database_name":     {value: "shop", shown: "databases[].name"},
		"project.branch.role_name":         {value: "keeper", shown: "roles[].name"},
		"project.branch.annotations":       {value: map[string]any{"a": "b"}, shown: "-"},
		"project.autoscaling_limit_min_cu": {value: 0.5, shown: "endpoints[].autoscaling_limit_min_cu"},
		"project.autoscaling_limit_max_cu": {value: 1.0, shown: "endpoints[].autoscaling_limit_max_cu"},
	})
	updateEndpoint := with("endpoint.", endpointSettings, map[string]fieldAsk{
		"endpoint.branch_id":                {value: child.ID},
		"endpoint.name":                     {value: "reports"},
		"endpoint.autoscaling_limit_min_cu": {value: 0.5},
		"endpoint.autoscaling_limit_max_cu": {value: 0.5},
		"endpoint.provisioner":              {value: "k8s-pod"},
		"endpoint.pooler_enabled":           {value: true},
		"endpoint.pooler_mode":              {value: "transaction"},
		"endpoint.disabled":                 {value: true},
		"endpoint.passwordless_access":      {value: false, refused: 422},
		"endpoint.suspend_timeout_seconds":  {value: 77.0},
	})
	createEndpoint := with("", updateEndpoint, map[string]fieldAsk{
		"endpoint.branch_id": {value: bare.ID},
		"endpoint.region_id": {value: "local"},
		"endpoint.type":      {value: "read_write"},
	})
	createEndpoint["endpoint.branch_id"] = fieldAsk{value: bare.ID}
	createBranch := with("endpoints[].", endpointSettings, map[string]fieldAsk{
		"branch.parent_id":                     {value: child.ID},
		"branch.name":                          {value: "a branch"},
		"branch.protected":                     {value: false},         // true excludes expires_at: see TestExpiry
		"branch.init_source":                   {value: "parent-data"}, // the other one: see TestSchemaOnlyBranch
		"branch.parent_lsn":                    {value: "0/1", refused: 400},
		"branch.parent_timestamp":              {value: "2026-01-01T00:00:00Z", refused: 400},
		"branch.expires_at":                    {value: later},
		"branch.archived":                      {value: true, refused: 422},
		"endpoints[].type":                     {value: "read_write"},
		"endpoints[].autoscaling_limit_min_cu": {value: 0.25},
		"endpoints[].autoscaling_limit_max_cu": {value: 0.25},
		"endpoints[].provisioner":              {value: "k8s-pod"},
		"endpoints[].suspend_timeout_seconds":  {value: 99.0},
		"annotation_value":                     {value: map[string]any{"k": "v"}, shown: "-"},
	})
	updateBranch := map[string]fieldAsk{
		"branch.name":       {value: "renamed"},
		"branch.protected":  {value: false},
		"branch.expires_at": {value: later},
	}

	doc, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
	if err != nil {
		t.Fatal(err)
	}
	base := "/projects/" + p.ID
	made := map[string]map[string]any{}
	for _, op := range []struct {
		method, template, path string
		asks                   map[string]fieldAsk
	}{
		{"POST", "/projects", "/projects", createProject},
		{"PATCH", "/projects/{project_id}", base, updateProject},
		{"POST", "/projects/{project_id}/branches", base + "/branches", createBranch},
		{"PATCH", "/projects/{project_id}/branches/{branch_id}", base + "/branches/" + spare.ID, updateBranch},
		{"POST", "/projects/{project_id}/endpoints", base + "/endpoints", createEndpoint},
		{"PATCH", "/projects/{project_id}/endpoints/{endpoint_id}", base + "/endpoints/" + child.Endpoint, updateEndpoint},
	} {
		what := op.method + " " + op.template
		fields := map[string]bool{}
		fieldsOf("", doc.Paths.Value(op.template).GetOperation(op.method).RequestBody.Value.Content.Get("application/json").Schema.Value, fields)
		if have, want := slices.Sorted(maps.Keys(op.asks)), slices.Sorted(maps.Keys(fields)); !slices.Equal(have, want) {
			t.Errorf("%s: the test asks for\n%v\nthe contract has\n%v", what, have, want)
			continue
		}
		all := map[string]any{}
		for path, a := range op.asks {
			if a.refused == 0 {
				put(all, path, a.value)
				continue
			}
			one := map[string]any{}
			if strings.HasPrefix(path, "endpoint") && op.method == "POST" {
				put(one, strings.SplitN(path, ".", 2)[0]+".type", "read_write")
				if strings.HasPrefix(path, "endpoint.") {
					put(one, "endpoint.branch_id", bare.ID)
				}
			}
			put(one, path, a.value)
			body, _ := json.Marshal(one)
			name := path[strings.LastIndex(path, ".")+1:]
			if r := s.raw(t, "", op.method, op.path, string(body)); r.status != a.refused || !strings.Contains(r.message, name) &&
				!strings.Contains(r.message, "preload_libraries") {
				t.Errorf("%s %s: %d %s", what, body, r.status, r.message)
			}
		}
		body, _ := json.Marshal(all)
		r := s.raw(t, "", op.method, op.path, string(body))
		var answer map[string]any
		if err := json.Unmarshal(r.body, &answer); err != nil || r.status/100 != 2 {
			t.Errorf("%s %s: %d %s", what, body, r.status, r.message)
			continue
		}
		made[what] = answer
		for path, a := range op.asks {
			shown := path
			if a.shown != "" {
				shown = a.shown
			}
			if a.refused == 0 && shown != "-" && !reflect.DeepEqual(pick(answer, shown), a.value) {
				t.Errorf("%s: %s is shown as %v, want %v", what, shown, pick(answer, shown), a.value)
			}
		}
	}
	for what, want := range map[string]string{"POST /projects": "map[a:b]", "POST /projects/{project_id}/branches": "map[k:v]"} {
		b, ok := made[what]["branch"].(map[string]any)
		if !ok {
			continue
		}
		r := s.raw(t, "", "GET", fmt.Sprintf("/projects/%v/branches/%v", b["project_id"], b["id"]), "")
		var answer map[string]any
		if err := json.Unmarshal(r.body, &answer); err != nil || fmt.Sprint(pick(answer, "annotation.value")) != want {
			t.Errorf("%s: the annotation is %v", what, pick(answer, "annotation.value"))
		}
		r = s.raw(t, "", "GET", fmt.Sprintf("/projects/%v/branches", b["project_id"]), "")
		if err := json.Unmarshal(r.body, &answer); err != nil || fmt.Sprint(pick(answer, fmt.Sprintf("annotations.%v.value", b["id"]))) != want {
			t.Errorf("%s: the annotation in the list: %s", what, r.body)
		}
	}
}
