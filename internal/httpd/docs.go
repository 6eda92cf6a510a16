package httpd

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"path"
	"strings"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	viewer "github.com/swaggest/swgui/v5/static"

	"github.com/boughdb/bough/api"
)

const (
	contractPath = api.BasePath + "/openapi.json"
	docsPath     = "/docs"
)

//go:embed docs/index.html docs/start.js
var docsPage embed.FS

// docsPolicy lets the page load from this server and nowhere else. Swagger UI writes style attributes.
const docsPolicy = "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; font-src data:; " +
	"connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// docs serves the contract (OpenAPI 3.0.3) and a reference to browse and try it: Swagger UI, which is part of the program.
type docs struct {
	contract  []byte // with serverMark where the server's address goes
	publicURL string
	files     map[string]docsFile // by name below /docs/; "" is the page
}

type docsFile struct {
	mediaType string
	etag      string
	content   []byte
	zipped    bool
}

const serverMark = "the address of this server"

// newDocs prepares what is served. publicURL is where people reach the server; "" takes it from each request.
func newDocs(doc *openapi3.T, publicURL string) (*docs, error) {
	shown := *doc
	info := *doc.Info
	info.Description += fmt.Sprintf(" What is listed here is built; the %d other operations of the published API answer 501 `NOT_IMPLEMENTED`.", len(api.Unbuilt()))
	shown.Info, shown.Servers = &info, openapi3.Servers{{URL: serverMark}}
	contract, err := shown.MarshalJSON()
	if err != nil {
		return nil, err
	}
	d := &docs{contract: contract, publicURL: strings.TrimRight(publicURL, "/"), files: map[string]docsFile{}}
	for name, file := range map[string]struct {
		mediaType, path string
		from            fs.FS
	}{
		"":                     {"text/html; charset=utf-8", "docs/index.html", docsPage},
		"start.js":             {"text/javascript; charset=utf-8", "docs/start.js", docsPage},
		"swagger-ui-bundle.js": {"text/javascript; charset=utf-8", "swagger-ui-bundle.js.gz", viewer.FS},
		"swagger-ui.css":       {"text/css; charset=utf-8", "swagger-ui.css.gz", viewer.FS},
		"favicon-32x32.png":    {"image/png", "favicon-32x32.png", viewer.FS},
	} {
		content, err := fs.ReadFile(file.from, file.path)
		if err != nil {
			return nil, err
		}
		sum := sha256.Sum256(content)
		d.files[name] = docsFile{file.mediaType, hex.EncodeToString(sum[:8]), content, path.Ext(file.path) == ".gz"}
	}
	return d, nil
}

// serveDocs answers what is public about the contract; false when the path is something else.
func (d *door) serveDocs(w http.ResponseWriter, r *http.Request) bool {
	name, below := strings.CutPrefix(r.URL.Path, docsPath+"/")
	file, known := d.docs.files[name]
	switch {
	case r.URL.Path == "/", r.URL.Path == docsPath, r.URL.Path == contractPath:
	case !below || !known:
		return false
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		d.notAllowed(w, r, "GET, HEAD")
		return true
	}
	w.Header().Set("X-Content-Type-Options", "nosniff")
	switch r.URL.Path {
	case contractPath:
		d.docs.serveContract(w, r)
	case "/", docsPath + "/":
		http.Redirect(w, r, docsPath, http.StatusFound)
	case docsPath:
		d.docs.files[""].serve(w, r)
	default:
		file.serve(w, r)
	}
	return true
}

// serveContract names the server by the address that it is known by, so that the document works wherever it is taken.
func (d *docs) serveContract(w http.ResponseWriter, r *http.Request) {
	base := d.publicURL
	if base == "" {
		base = "http://" + r.Host
		if r.TLS != nil {
			base = "https://" + r.Host
		}
	}
	address, err := json.Marshal(base + api.BasePath)
	if err != nil {
		panic(err) // no text is unmarshallable
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-cache")
	w.Header().Set("Access-Control-Allow-Origin", "*") // for tools that run in a browser
	body := bytes.Replace(d.contract, []byte(`"`+serverMark+`"`), address, 1)
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(body))
}

func (f docsFile) serve(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.mediaType)
	h.Set("Content-Security-Policy", docsPolicy)
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-cache") // asked for each time, and answered with 304
	h.Set("ETag", `"`+f.etag+`"`)
	if f.zipped {
		h.Set("Vary", "Accept-Encoding")
		if !strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			h.Set("ETag", `"`+f.etag+`-plain"`)
			if plain, err := gzip.NewReader(bytes.NewReader(f.content)); err == nil { // the build's own file
				_, _ = io.Copy(w, plain) // the client is gone
			}
			return
		}
		h.Set("Content-Encoding", "gzip")
	}
	http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(f.content))
}
