package config

// encodedPorts gives the ports that a message of a knock of type "encoded" goes to.
func (k *Knock) encodedPorts() []PortRange {
	return []PortRange{{k.Base.Proto, k.Base.Low, uint16(min(int(k.Base.Low)+k.Span-1, 65535))}}
}

// checkEncoded looks at a knock of type "encoded".
func checkEncoded(r *reader, c *Config, i int) {
	k := &c.Knocks[i]
	path := join("knock", k.Name)
	if k.Secrets == "" && !r.faulty[join(path, "secrets")] {
		r.fault(path, `%s lets nobody in; add secrets = "FILE", which 'sallyport keygen --secret NAME' writes to`, path)
	}
}
