package api

import (
	_ "embed"
	"strings"
)

//go:embed unbuilt.tsv
var unbuiltTSV string

// Route is one operation of the published API.
type Route struct {
	Method      string // GET, POST, PUT, PATCH, DELETE
	Path        string // without BasePath, parameters in braces
	OperationID string
}

// Unbuilt returns the published operations that are not in openapi.yaml; the server answers 501 to them.
func Unbuilt() []Route {
	var routes []Route
	for line := range strings.Lines(unbuiltTSV) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		f := strings.Split(line, "\t")
		if len(f) != 3 {
			panic("api: malformed line in unbuilt.tsv: " + line)
		}
		routes = append(routes, Route{Method: f[0], Path: f[1], OperationID: f[2]})
	}
	return routes
}
