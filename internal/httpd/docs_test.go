package httpd

import (
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"github.com/boughdb/bough/api"
)

// get reads a public path; what it answers is never compressed.
func get(t *testing.T, srv *httptest.Server, path string) (*http.Response, string) {
	t.Helper()
	res, err := srv.Client().Get(srv.URL + path)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(body)
}

func TestContractIsServed(t *testing.T) {
	srv, _ := newDoor(t, &desk{})
	for name, c := range map[string]struct {
		srv  *httptest.Server
		want string
	}{
		"by the request": {srv, srv.URL + "/api/v2"},
		"public URL": {func() *httptest.Server {
			s, _ := newDoor(t, &desk{}, func(o *Options) { o.PublicURL = `https://bough.example.com/` })
			return s
		}(), "https://bough.example.com/api/v2"},
	} {
		res, body := get(t, c.srv, "/api/v2/openapi.json")
		if res.StatusCode != 200 || res.Header.Get("Content-Type") != "application/json" {
			t.Fatalf("%s: %d %s", name, res.StatusCode, res.Header.Get("Content-Type"))
		}
		doc, err := openapi3.NewLoader().LoadFromData([]byte(body))
		if err != nil {
			t.Fatal(err)
		}
		if err := doc.Validate(t.Context()); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(doc.Servers) != 1 || doc.Servers[0].URL != c.want {
			t.Errorf("%s: servers %v, want %s", name, doc.Servers, c.want)
		}
		// What is listed is what works: all of the contract, nothing that answers 501.
		own, err := openapi3.NewLoader().LoadFromData(api.OpenAPI())
		if err != nil {
			t.Fatal(err)
		}
		if doc.Paths.Len() != own.Paths.Len() {
			t.Errorf("%s: %d paths, the contract has %d", name, doc.Paths.Len(), own.Paths.Len())
		}
		for _, u := range api.Unbuilt() {
			if item := doc.Paths.Value(u.Path); item != nil && item.GetOperation(u.Method) != nil {
				t.Errorf("%s: %s is listed, and not built", name, u.OperationID)
			}
		}
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/api/v2/openapi.json", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = `a"b\c</script>`
	rec := httptest.NewRecorder()
	srv.Config.Handler.ServeHTTP(rec, req)
	if _, err := openapi3.NewLoader().LoadFromData(rec.Body.Bytes()); err != nil {
		t.Errorf("a hostile host name breaks the contract: %v", err)
	}
}

// The reference loads nothing from anywhere else: neither does what is served ask for it, nor would a browser allow it.
func TestReferenceIsOffline(t *testing.T) {
	srv, _ := newDoor(t, &desk{})
	res, page := get(t, srv, "/docs")
	if res.StatusCode != 200 || !strings.HasPrefix(res.Header.Get("Content-Type"), "text/html") {
		t.Fatalf("%d %s", res.StatusCode, res.Header.Get("Content-Type"))
	}
	if regexp.MustCompile(`(?i)//|<style|style=|\son\w+=|<script>`).MatchString(page) {
		t.Errorf("the page has inline code or names another host:\n%s", page)
	}
	links := regexp.MustCompile(`(?:src|href)="([^"]+)"`).FindAllStringSubmatch(page, -1)
	if len(links) < 5 {
		t.Fatalf("%d links", len(links))
	}
	for _, link := range links {
		res, body := get(t, srv, link[1])
		if res.StatusCode != 200 || body == "" {
			t.Errorf("%s: %d, %d bytes", link[1], res.StatusCode, len(body))
		}
		if csp := res.Header.Get("Content-Security-Policy"); link[1] != contractPath && csp != docsPolicy {
			t.Errorf("%s has the policy %q", link[1], csp)
		}
		switch {
		case strings.HasSuffix(link[1], ".css"):
			for _, u := range regexp.MustCompile(`@import[^;]*|url\(\s*['"]?(?:[^d'"]|d[^a])[^)]*`).FindAllString(body, -1) {
				t.Errorf("%s loads %.80s", link[1], u)
			}
		case strings.HasSuffix(link[1], "start.js"):
			if strings.Contains(strings.ReplaceAll(body, "// ", ""), "//") {
				t.Errorf("%s names another host", link[1])
			}
			if !strings.Contains(body, "validatorUrl: null") {
				t.Errorf("%s does not switch the online validator off", link[1])
			}
		}
	}
	for _, source := range strings.FieldsFunc(docsPolicy, func(c rune) bool { return c == ' ' || c == ';' }) {
		if strings.ContainsAny(source, "*.:") && source != "data:" {
			t.Errorf("the policy allows %s", source)
		}
	}
	if res.Request.URL.Path != "/docs" || !strings.Contains(res.Header.Get("Content-Security-Policy"), "default-src 'none'") {
		t.Error("the page has no policy")
	}

	// A browser's first guess leads there; an unchanged file is not sent twice; nothing else is below it.
	if res, _ := get(t, srv, "/"); res.Request.URL.Path != "/docs" {
		t.Errorf("/ leads to %s", res.Request.URL)
	}
	again, err := http.NewRequestWithContext(t.Context(), "GET", srv.URL+"/docs", nil)
	if err != nil {
		t.Fatal(err)
	}
	again.Header.Set("If-None-Match", res.Header.Get("ETag"))
	if res, err := srv.Client().Do(again); err != nil || res.StatusCode != 304 {
		t.Errorf("the same page again: %v, %v", res, err)
	}
	for _, path := range []string{"/docs/nothing", "/docs/../api.go", "/docs/docs/index.html"} {
		if res, _ := get(t, srv, path); res.StatusCode != 404 {
			t.Errorf("%s: %d", path, res.StatusCode)
		}
	}
	resp, e, _ := do(t, srv, call{method: "POST", path: "/docs", key: "none"})
	if resp.StatusCode != 405 || e.Code != "METHOD_NOT_ALLOWED" {
		t.Errorf("POST /docs: %d", resp.StatusCode)
	}
}
