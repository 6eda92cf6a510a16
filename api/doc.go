// Package api is the contract: openapi.yaml in our own words, and the types, the client and the strict server
// generated from it. unbuilt.tsv lists the published operations that answer 501.
package api

//go:generate go -C ../tools tool oapi-codegen -config ../api/codegen.yaml ../api/openapi.yaml

import (
	_ "embed"
	"encoding/json"
	"time"
)

// BasePath is where the API is served.
const BasePath = "/api/v2"

//go:embed openapi.yaml
var openAPI []byte

// OpenAPI returns the contract as YAML.
func OpenAPI() []byte { return append([]byte(nil), openAPI...) }

// NullableTime is a time that a PATCH leaves alone (the zero value), sets, or clears with null.
type NullableTime struct {
	Set  bool
	Time *time.Time // nil clears
}

// IsZero makes the field absent in JSON when it is not set.
func (t NullableTime) IsZero() bool { return !t.Set }

// MarshalJSON writes null for a cleared time.
func (t NullableTime) MarshalJSON() ([]byte, error) { return json.Marshal(t.Time) }

// UnmarshalJSON is called for null too, which is what tells it from an absent field.
func (t *NullableTime) UnmarshalJSON(b []byte) error {
	t.Set, t.Time = true, nil
	if string(b) == "null" {
		return nil
	}
	return json.Unmarshal(b, &t.Time)
}
